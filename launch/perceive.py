# SPDX-License-Identifier: Apache-2.0
"""Runs the decoders that see over examples: from an answer with links to objects in the original picture.

The answers are given (teacher forcing), as in the official evaluations: they name every class of the dataset,
so nothing has to be generated.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from data_pipelines.collate import TaskShape
from data_pipelines.example import Example
from launch.build import Run
from launch.rows import Examples, host_batches
from launch.truth import keypoint_ids, picture_size
from vllm2_jax.batch import TaskRows
from vllm2_jax.evals import postprocess
from vllm2_jax.evals.objects import Detections, encode
from vllm2_jax.evals.pose import number
from vllm2_jax.evals.semantic import LabelMap
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import batch_sharding, global_batch, local_rows

# On a CPU, XLA slices bfloat16 as float32, and it would convert the weights of all layers before the loop
# over them: 27 GB for a 7B language model. With this pass off, a layer is converted when its turn comes.
FOR_CPU = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a decoder makes of one picture.

    Attributes:
      number: of the example.
      example: with the links that were asked for.
      decoder: that looked.
      objects: in pixels of the original picture, labelled with the names of the links.
      classes: the class of every pixel, where the decoder makes such maps.
    """

    number: int
    example: Example
    decoder: str
    objects: Detections
    classes: LabelMap | None


class Perceiver:
    """Runs one task's decoder. Compiles once, whatever the number of examples.

    Attributes:
      dropped: links and targets that found no room, over the examples that this process saw last.
    """

    def __init__(self, run: Run, shape: TaskShape, rows: int, *, masks: bool = True, classes: bool = False):
        """The parts of an answer that are not wanted are not computed.

        Args:
          run: model, tokenizer and mesh.
          shape: the decoder and the capacities.
          rows: how many pictures a host runs at once.
          masks: of the objects.
          classes: of every pixel.
        """
        if shape.decoder is None:
            raise ValueError("this task has no decoder; its answers are words")
        decoder = shape.decoder
        self.run, self.rows, self.decoder = run, rows, decoder
        self.shape = dataclasses.replace(shape, rows=1, strict=False)
        self.spec = dataclasses.replace(run.spec, truncate=False, strict=False)
        self.dropped: collections.Counter[str] = collections.Counter()
        unwanted = {"masks": not masks, "classes": not classes}

        def predict(model: VisionLLMv2, rows: TaskRows) -> dict[str, jax.Array]:
            found = vars(model.predict(rows, decoder))
            return {name: value for name, value in found.items() if not unwanted.get(name)}

        on_cpu = run.mesh.devices.flat[0].platform == "cpu"
        self._predict = jax.jit(
            predict,
            out_shardings=batch_sharding(run.mesh, run.strategy.rules),
            compiler_options=FOR_CPU if on_cpu else {},
        )

    def __call__(self, model: VisionLLMv2, examples: Examples) -> Iterator[Seen]:
        """What the decoder makes of this process' share of the examples; every process passes the same ones.

        Raises:
          DataError: a record that is wrong or too long; names file and record.
        """
        self.dropped.clear()
        for mine, batch, counters in host_batches(self.run, self.spec, self.shape, self.rows, examples):
            self.dropped.update(counters)
            with jax.set_mesh(self.run.mesh), axis_rules(self.run.strategy.activation_rules):
                placed = global_batch(self.run.mesh, self.run.strategy.rules, batch)
                found = jax.tree.map(local_rows, self._predict(model, placed))
            sizes = batch.targets[self.decoder]["size"][:, 0].tolist()
            for row, (i, example) in enumerate(mine):
                one = {name: value[row] for name, value in found.items()}
                yield read(one, i, example, self.decoder, (sizes[row][0], sizes[row][1]))


def read(
    found: dict[str, Any], number_of: int, example: Example, decoder: str, inside: postprocess.Size
) -> Seen:
    """One row of a decoder's predictions in the original picture.

    Args:
      found: the fields of what `predict` returns, for this row.
      number_of: of the example.
      example: what was asked.
      decoder: its name.
      inside: height and width of the picture in the decoder's square.
    """
    size = picture_size(example, decoder)
    names = np.array(example.meta["classes"], str)
    # Places without a link score 0.
    keep = (found["scores"] > 0) & (found["labels"] < len(names))
    masks = points = classes = None
    if "masks" in found:
        masks = encode(postprocess.instance_masks(found["masks"][keep], inside, size))
    if "keypoints" in found:
        points = found["keypoints"][keep] * np.array(size[::-1])
        # Links that found no room have no point; theirs stay zero.
        points = number(points, keypoint_ids(example, decoder)[: points.shape[1]])
    if "classes" in found:
        maps = found["classes"][: len(names)]
        classes = LabelMap(postprocess.class_map(maps, inside, size), tuple(example.meta["classes"]))
    objects = Detections(
        postprocess.boxes_in_pixels(found["boxes"][keep], size),
        names[found["labels"][keep]],
        found["scores"][keep],
        masks,
        points,
    )
    return Seen(number_of, example, decoder, objects, classes)
