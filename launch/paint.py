# SPDX-License-Identifier: Apache-2.0
"""One picture of a run's decoder: painted from words, or a photo changed as an instruction says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from data_pipelines.collate import TaskShape, columns_of
from data_pipelines.conversation import link
from data_pipelines.example import Example
from data_pipelines.images import Tiling
from launch.answer import Answer, AnswerConfig, Answerer
from launch.brush import Brush
from launch.build import Run
from launch.manner import Manner, Picture
from launch.rows import host_batches
from vllm2_jax import links
from vllm2_jax.batch import TaskRows
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import batch_sharding, global_batch, local_rows

# Decoder by the token of its link.
PAINTED = {"gen": "stable_diffusion", "edit": "instruct_pix2pix"}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be painted.

    Attributes:
      task: a key of `PAINTED`.
      prompt: the picture in words, or what is to change.
      picture: what an edit starts from; its central square is edited. None for "gen".
    """

    task: str
    prompt: str
    picture: Picture | None = None

    def __post_init__(self):
        wrong = None
        if not self.prompt.strip():
            wrong = "say what with --prompt"
        elif self.task == "edit" and self.picture is None:
            wrong = "give the --image to change"
        elif self.task == "gen" and self.picture is not None:
            wrong = "paints from words alone, leave out --image"
        if wrong:
            raise ValueError(f"--task {self.task}: {wrong}")


def paint(
    run: Run,
    model: VisionLLMv2,
    wish: Wish,
    capacities: Mapping[str, Any],
    manner: Manner,
    *,
    sampling: Mapping[str, Any],
    seed: int = 0,
    generated: bool = False,
) -> UInt8[np.ndarray, "S S 3"]:
    """What the decoder makes of a wish.

    Args:
      run, model: with this task's decoder.
      wish: what to paint.
      capacities: static sizes of the decoder's input.
      manner: how the run was asked.
      sampling: fields of `SamplingConfig` that differ from the decoder's own.
      seed: of the noise.
      generated: the model writes the answer itself, instead of being given one with a link.

    Raises:
      ValueError: an impossible sampler or number of steps, or a generated answer that calls no link of this
        task.
    """
    size, prompt = run.model.vision.image_size, wish.prompt.strip()
    images = [] if wish.picture is None else [Tiling("anyres", size, manner.max_tiles)(wish.picture)]
    words = manner.name(prompt.removesuffix("."))
    question, text = manner.turns([prompt], [link(words, wish.task, run.model.queries)])
    question = "<image>\n" * len(images) + question
    example = Example("command line", "the command line", wish.task, [("human", question)], images)
    tiles = sum(len(image) for image in images)
    if generated:
        (answer,) = Answerer(run, AnswerConfig(rows=1, tiles=tiles, states=True))(model, [example])
        if wish.task not in answer.links:
            raise ValueError(f"the model's answer calls no decoder for --task {wish.task}: {answer.marked!r}")
    else:
        shape = TaskShape(1, PAINTED[wish.task], tiles, links={wish.task: 1}, capacities=capacities)
        answer = given_answer(run, model, example, text, wish.task, shape)
    painted = Brush(run, sampling, seed)(model, answer, wish.picture)
    return next(picture for name, picture in painted if name.endswith(f"_{wish.task}"))


def given_answer(
    run: Run, model: VisionLLMv2, example: Example, text: str, task: str, shape: TaskShape
) -> Answer:
    """The answer `text` put in the model's mouth, with the states of its one link."""
    side = shape.capacities["size"]
    blank = np.zeros((side, side, 3), np.uint8)  # of what the decoder would learn from, which is not read
    example = dataclasses.replace(
        example,
        turns=[*example.turns, ("gpt", text)],
        targets={PAINTED[task]: {"image": blank, "input": blank, "caption": None}},
    )
    # As many columns as this row has: a prompt may be longer than those of the run's own rows.
    spec = dataclasses.replace(run.spec, length=1 << 20, truncate=False)
    columns = len(columns_of(example, run.tokenizer, spec, [len(image) for image in example.images]).ids)
    spec = dataclasses.replace(spec, length=-(-columns // 64) * 64)

    def states(model: VisionLLMv2, rows: TaskRows) -> jax.Array:
        return links.read(model.hidden(rows.inputs), rows).states

    ((_, batch, _),) = host_batches(run, spec, shape, 1, [example])
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        placed = global_batch(run.mesh, run.strategy.rules, batch)
        read = jax.jit(states, out_shardings=batch_sharding(run.mesh, run.strategy.rules))
        found = local_rows(read(model, placed))[0, 0, 0]
    return Answer(text, True, (task,), text, (found,))
