# SPDX-License-Identifier: Apache-2.0
"""Examples in batches of rows, for programs that answer them: every process its share, always full."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import grain
from absl import logging

from data_pipelines.collate import CollateSpec, Row, TaskShape, blank_row, collate, make_row
from data_pipelines.example import Example
from launch.build import Run
from vllm2_jax.batch import TaskRows
from vllm2_jax.sharding.partition import batch_shards, host_share

PROGRESS = 60.0  # seconds between two lines that say how far it is

Read = TypeVar("Read")


class Examples(Protocol):
    """Random access to examples, which may be read from files one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def read_ahead(read: Callable[[int], Read], numbers: Sequence[int], ahead: int = 0) -> Iterator[Read]:
    """`read` of every number, in their order; threads have the next `ahead` ready (at least one each)."""
    threads = os.cpu_count() or 1
    made = grain.MapDataset.source(numbers).map(read)
    yield from made.to_iter_dataset(grain.ReadOptions(threads, max(threads, ahead)))


def whole_rows(run: Run, rows: int) -> int:
    """`rows`, or the next number that splits over the devices of a host."""
    devices = batch_shards(run.mesh, run.strategy.rules) // host_share(run.mesh, run.strategy.rules)[1]
    return -(-rows // devices) * devices


def host_batches(
    run: Run, spec: CollateSpec, shape: TaskShape, rows: int, examples: Examples
) -> Iterator[tuple[list[tuple[int, Example]], TaskRows, dict[str, int]]]:
    """Batches of `rows` rows on this host, or of a few more that split over its devices, filled with padding.

    Threads read the examples of the next batch while this one is looked at.

    Args:
      run: gives tokenizer and mesh.
      spec, shape: of the rows; `shape.rows` is 1, so that every row is a group.
      rows: how many at once.
      examples: of all hosts, the same on each.

    Yields:
      The examples with their numbers, their rows, and what was left out. Hosts without examples left yield
      padding as long as another one has some.

    Raises:
      DataError: a record that is wrong or too long; names file and record.
    """
    part, parts = host_share(run.mesh, run.strategy.rules)
    rows = whole_rows(run, rows)
    blank = blank_row(run.tokenizer, spec, shape)
    starts = range(0, len(examples), rows * parts)
    mine = [range(start + part * rows, min(start + (part + 1) * rows, len(examples))) for start in starts]

    def read(number: int) -> tuple[tuple[int, Example], Row]:
        example = examples[number]
        return (number, example), make_row(example, run.tokenizer, spec, shape)

    made = read_ahead(read, list(itertools.chain(*mine)), rows)
    for start, places in zip(starts, mine, strict=True):
        logging.log_every_n_seconds(
            logging.INFO, "%s: %d of %d pictures", PROGRESS, shape.decoder, start, len(examples)
        )
        now = list(itertools.islice(made, len(places)))
        batch, counters = collate([*(row for _, row in now), *[blank] * (rows - len(now))], spec, shape)
        yield [example for example, _ in now], batch, counters
