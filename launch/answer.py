# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures in, text out: what evaluation, the report and the command line share."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.collate import TaskShape, blank_row, collate, make_row
from data_pipelines.conversation import stop_id
from data_pipelines.example import Example
from launch.build import Run
from launch.rows import whole_rows
from vllm2_jax.batch import Inputs, flatten_groups
from vllm2_jax.llm.generate import NO_LINK, Generation, cut_at, generate
from vllm2_jax.llm.sampling import Sampler
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch, host_groups, host_share
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
      states: bring the states of links to the host, for a decoder to read.
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
    states: bool = False

    def __post_init__(self):
        """Raises ValueError for settings that no answer can have."""
        if self.rows < 1 or self.max_new < 1:
            raise ValueError(f"rows ({self.rows}) and max_new ({self.max_new}) have to be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it has to be 0 (the best token) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is a probability: more than 0, at most 1")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      text: what it says.
      finished: whether it ended by itself.
      links: the links it called (`tokens.Link.token`).
      marked: the text with its special tokens, where links stand; without their queries.
      states: hidden states at the queries of each link, [Q, D]; none unless they were asked for.
    """

    text: str
    finished: bool
    links: tuple[str, ...]
    marked: str
    states: tuple[np.ndarray, ...] = ()


class Answerer:
    """Answers examples whose last turn is a question. Compiles once, whatever the number of examples.

    Each host computes its share of every batch of prompts; all hosts get all answers.
    """

    def __init__(self, run: Run, config: AnswerConfig):
        """`run` gives tokenizer, conversation format, length of the prompts and the mesh of the model."""
        self.run, self.config = run, config
        # Prompts that are too long raise: an answer to half a question is worth nothing.
        self.spec = dataclasses.replace(run.spec, truncate=False, strict=True)
        self.shape = TaskShape(rows=1, tiles=config.tiles, regions=config.regions)
        self._generate = jax.jit(generation(run, config))

    def __call__(self, model: VisionLLMv2, examples: Sequence[Example]) -> list[Answer]:
        """The answers, in the order of the examples; every host passes the same ones.

        Raises:
          DataError: a prompt that is wrong or does not fit; names file and record.
        """
        return list(self.stream(model, examples))

    def stream(self, model: VisionLLMv2, examples: Iterable[Example]) -> Iterator[Answer]:
        """The same, with no more examples in memory than are answered at once."""
        rows = whole_rows(self.run, self.config.rows)
        count = rows * host_share(self.run.mesh, self.run.strategy.rules)[1]
        # Answers come back in the order of the global batch, in which a host's rows need not be neighbours.
        places = host_groups(self.run.mesh, self.run.strategy.rules, count)
        blank = blank_row(self.run.tokenizer, self.spec, self.shape)
        examples = iter(examples)
        for start in itertools.count(0, count):
            now = list(itertools.islice(examples, count))
            if not now:
                return
            mine = [now[place] for place in places if place < len(now)]
            made = [make_row(example, self.run.tokenizer, self.spec, self.shape) for example in mine]
            host, _ = collate([*made, *[blank] * (rows - len(made))], self.spec, self.shape)
            found = self._run(model, host.inputs, start)
            yield from [self._decode(*row) for row in zip(*found, strict=True)][: len(now)]

    def _run(self, model: VisionLLMv2, inputs: Inputs, start: int) -> list[np.ndarray]:
        """Tokens, lengths, kinds of links, `finished`, maybe states, of one batch; all hosts get all rows."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), start)
        sampler = Sampler(self.config.temperature, self.config.top_p)
        with jax.set_mesh(self.run.mesh), axis_rules(self.run.strategy.activation_rules):
            placed = global_batch(self.run.mesh, self.run.strategy.rules, inputs)
            made = self._generate(model, placed, key, sampler)
        wanted = [made.tokens, made.lengths, made.kind, made.finished]
        wanted += [made.states] if self.config.states else []
        return [np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in wanted]

    def _decode(
        self,
        tokens: np.ndarray,
        length: int,
        kinds: np.ndarray,
        finished: bool,
        states: np.ndarray | None = None,
    ) -> Answer:
        """One row of what `_run` returns."""
        decode, stop = self.run.tokenizer.decode, self.config.stop
        text, marked = (
            cut_at(decode(tokens[:length], keep_special=keep), stop).strip() for keep in (False, True)
        )
        links = [LINKS[kind] for kind in kinds if kind != NO_LINK]
        sizes = [self.run.model.queries.of(link.bank) for link in links]
        kept = () if states is None else tuple(states[i, :size] for i, size in enumerate(sizes))
        return Answer(text, bool(finished), tuple(link.token for link in links), marked, kept)


def generation(run: Run, config: AnswerConfig) -> Callable[..., Generation]:
    """`(model, inputs, key, sampler) -> Generation` for a run's tokenizer and format, to be compiled."""
    ids = run.tokenizer.ids
    ending = stop_id(run.tokenizer, run.spec.format)
    stop = [tuple(run.tokenizer.encode(text)) for text in config.stop]
    return functools.partial(
        _generate,
        ids=ids,
        max_new=config.max_new,
        max_links=config.max_links,
        stop=tuple(stop if ending == ids.eos else [*stop, (ending,)]),
        vocab=run.tokenizer.vocab_size,
    )


def _generate(
    model: VisionLLMv2, inputs: Inputs, key: jax.Array, sampler: Sampler, **settings: Any
) -> Generation:
    prompt = flatten_groups(model.embed(inputs))
    return generate(
        model.llm,
        model.queries.table(prompt.dtype),
        prompt,
        flatten_groups(inputs.segments) > 0,
        key,
        sampler,
        counts=model.config.queries,
        **settings,
    )
