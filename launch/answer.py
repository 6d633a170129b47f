# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures in, text out: what evaluation, the report and the command line share."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.collate import CollateSpec, TaskShape, blank_row, collate, make_row
from data_pipelines.conversation import stop_id
from data_pipelines.example import Example
from data_pipelines.tokenizer import Tokenizer
from vllm2_jax.batch import Inputs, flatten_groups
from vllm2_jax.llm.generate import Generation, cut_at, generate
from vllm2_jax.llm.sampling import Sampler
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.tokens import LINKS


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How answers are generated.

    Attributes:
      rows: prompts answered at once on one host.
      tiles, regions: room for them in a prompt.
      max_new: budget of columns of an answer, link queries included.
      max_links: links of an answer whose states are kept.
      temperature, top_p: see `llm.sampling`; temperature 0 is greedy.
      stop: strings that end an answer besides the format's own end.
      seed: of the sampling.
    """

    rows: int = 16
    tiles: int = 1
    regions: int = 0
    max_new: int = 64
    max_links: int = 8
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: its text, whether it ended by itself, and the links it called (fields of `SpecialIds`)."""

    text: str
    finished: bool
    links: tuple[str, ...]


class Answerer:
    """Answers examples whose last turn is a question. Compiles once, whatever the number of examples."""

    def __init__(
        self,
        model: VisionLLMv2,
        tokenizer: Tokenizer,
        spec: CollateSpec,
        config: AnswerConfig,
        mesh: Mesh,
        strategy: Strategy,
    ):
        """`spec.length` bounds the prompts; `mesh` and `strategy` are those the model lies on."""
        self.model, self.tokenizer, self.spec, self.config = model, tokenizer, spec, config
        self.mesh, self.strategy = mesh, strategy
        self.shape = TaskShape(rows=1, tiles=config.tiles, regions=config.regions)
        ending = stop_id(tokenizer, spec.format)
        sequences = [tuple(tokenizer.encode(text)) for text in config.stop]
        if ending != tokenizer.ids.eos:
            sequences.append((ending,))
        self._generate = jax.jit(
            functools.partial(
                _generate,
                ids=tokenizer.ids,
                max_new=config.max_new,
                max_links=config.max_links,
                stop=tuple(sequences),
            )
        )

    def __call__(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """The answers in the order of the examples; every host has to pass as many.

        Raises:
          DataError: a prompt that is wrong or does not fit; names file and record.
        """
        rows = [make_row(example, self.tokenizer, self.spec, self.shape) for example in examples]
        blank = blank_row(self.tokenizer, self.spec, self.shape)
        for start in range(0, len(rows), self.config.rows):
            part = rows[start : start + self.config.rows]
            filled = [*part, *[blank] * (self.config.rows - len(part))]
            host, _ = collate(filled, self.spec, self.shape)
            yield from self._decode(self._run(host.inputs, start), len(part))

    def _run(self, inputs: Inputs, start: int) -> Generation:
        """Generates for one host batch of every process; returns this process's rows as numpy."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), start)
        sampler = Sampler(self.config.temperature, self.config.top_p)
        with jax.set_mesh(self.mesh), axis_rules(self.strategy.activation_rules):
            placed = global_batch(self.mesh, self.strategy.rules, inputs)
            made = self._generate(self.model, placed, key, sampler)
        made = made.replace(states=None)
        if jax.process_count() == 1:
            return jax.device_get(made)
        everyone = multihost_utils.process_allgather(made, tiled=True)
        mine = slice(jax.process_index() * self.config.rows, (jax.process_index() + 1) * self.config.rows)
        return jax.tree.map(lambda x: x[mine], everyone)

    def _decode(self, made: Generation, count: int) -> Iterator[Answer]:
        stops = self.config.stop
        names = {getattr(self.tokenizer.ids, link.token): link.token for link in LINKS}
        for row in range(count):
            ids = made.tokens[row, : made.lengths[row]]
            text = cut_at(self.tokenizer.decode(ids), stops).strip()
            links = tuple(names[int(i)] for i in ids if int(i) in names)
            yield Answer(text, bool(made.finished[row]), links)


def _generate(
    model: VisionLLMv2, inputs: Inputs, key: jax.Array, sampler: Sampler, *, ids, max_new, max_links, stop
) -> Generation:
    prompt = flatten_groups(model.embed(inputs))
    return generate(
        model.llm,
        model.queries.table(prompt.dtype),
        prompt,
        flatten_groups(inputs.segments) > 0,
        key,
        sampler,
        ids=ids,
        counts=model.config.queries,
        max_new=max_new,
        max_links=max_links,
        stop=stop,
    )


def prompts(example: Example) -> list[tuple[Example, str]]:
    """One (example that ends with a question, true answer) for each turn, with the true turns before it."""
    pairs = []
    for i, (who, text) in enumerate(example.turns):
        if who == "gpt":
            pairs.append((dataclasses.replace(example, turns=example.turns[:i]), text))
    return pairs
