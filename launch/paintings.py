# SPDX-License-Identifier: Apache-2.0
"""Lets the decoders that paint answer held-out requests, and scores their pictures.

The answer with its link is given, so the language model only has to read the request.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from data_pipelines.collate import TaskShape
from data_pipelines.example import Example
from launch.build import Config, Run
from launch.judge import scene_judge
from launch.rows import Examples, host_batches
from launch.sights import SHOWN, First, open_datasets, task_shape
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.evals import EVALS
from vllm2_jax.evals.metric import gather
from vllm2_jax.evals.paint import Edit, Thing
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import batch_sharding, global_batch, local_rows


@dataclasses.dataclass(frozen=True)
class Painting:
    """What a decoder painted.

    Attributes:
      number: of the example; seeds the picture's noise.
      example: the request, with the link that was given.
      picture: what came out.
      wanted: the truth, as the decoder's square.
      before: the picture to edit, None for generation.
    """

    number: int
    example: Example
    picture: UInt8[np.ndarray, "S S 3"]
    wanted: UInt8[np.ndarray, "S S 3"]
    before: UInt8[np.ndarray, "S S 3"] | None


class PictureMaker:
    """Runs one task's decoder. Compiles once, whatever the number of examples."""

    def __init__(self, run: Run, shape: TaskShape, rows: int):
        """`shape` gives the decoder and the capacities, `rows` how many pictures a host makes at once."""
        assert shape.decoder is not None
        self.run, self.rows, self.decoder = run, rows, shape.decoder
        self.shape = dataclasses.replace(shape, rows=1, strict=False)
        self.spec = dataclasses.replace(run.spec, truncate=False, strict=False)
        self._predict = jax.jit(
            lambda model, rows: model.predict(rows, shape.decoder),
            out_shardings=batch_sharding(run.mesh, run.strategy.rules),
        )

    def __call__(self, model: VisionLLMv2, examples: Examples) -> Iterator[Painting]:
        """Pictures for this process' share of the examples; every process passes the same ones.

        Raises:
          DataError: a record that is wrong or too long; names file and record.
        """
        for mine, batch, _ in host_batches(self.run, self.spec, self.shape, self.rows, examples):
            arrays = batch.targets[self.decoder]
            numbers = np.zeros((len(batch.labels), 1), np.int32)  # of padding, too
            numbers[: len(mine), 0] = [number for number, _ in mine]
            batch.targets[self.decoder] = {**arrays, "seed": numbers}
            with jax.set_mesh(self.run.mesh), axis_rules(self.run.strategy.activation_rules):
                placed = global_batch(self.run.mesh, self.run.strategy.rules, batch)
                pictures = local_rows(self._predict(model, placed))
            for row, (number, example) in enumerate(mine):
                before = arrays["input"][row, 0] if "input" in arrays else None
                yield Painting(number, example, pictures[row, 0], arrays["image"][row, 0], before)


@dataclasses.dataclass(frozen=True)
class Commission:
    """Requests for one decoder.

    Attributes:
      name: of the task, and of the dataset where the task has several.
      examples: with answers and targets.
      metrics: keys of `evals.PICTURES`.
      maker: runs the decoder.
    """

    name: str
    examples: First
    metrics: tuple[str, ...]
    maker: PictureMaker


def read_commissions(config: Config, run: Run, count: int | None = None) -> list[Commission]:
    """The datasets of the tasks whose decoder paints."""
    found = []
    for task, dataset, entry, source in open_datasets(config, run, count):
        if entry.get("decoder") in PAINTERS:
            name = task if len(entry["datasets"]) == 1 else f"{task}/{dataset}"
            maker = PictureMaker(run, task_shape(entry), config.eval.pictures)
            found.append(Commission(name, source, tuple(entry["metrics"]), maker))
    return found


def paint(commission: Commission, model: VisionLLMv2) -> tuple[list[Painting], dict[str, float]]:
    """The first pictures of this process' share, and all scores, `<task>/<value>`, on all processes."""
    first: list[Painting] = []
    records: dict[str, dict[int, Any]] = {name: {} for name in commission.metrics}
    for made in commission.maker(model, commission.examples):
        for name, mine in records.items():
            mine[made.number] = EVALS[name].record(*compared(name, made))
        if len(first) < SHOWN:
            first.append(made)
    scores: dict[str, float] = {}
    for name, mine in records.items():
        values = EVALS[name].score(gather(mine))
        scores |= {f"{commission.name}/{key}": value for key, value in values.items()}
    return first, scores


def compared(metric: str, made: Painting) -> tuple[Any, Any]:
    """What a metric compares: prediction and truth.

    Raises:
      ValueError: a metric of edits for a picture that was not edited, or of things without their names.
    """
    if metric == "edits":
        if made.before is None:
            raise ValueError("the metric 'edits' is for the decoder instruct_pix2pix")
        return made.picture, Edit(made.before, made.wanted)
    things = made.example.meta.get("things", ())
    if len(things) != 1:
        raise ValueError(
            f"the metric {metric!r} judges synthetic scenes with one thing, {made.example.file} has "
            f"{len(things)}: take the level 'one'"
        )
    return scene_judge(len(made.picture))(made.picture), Thing(*things[0])
