# SPDX-License-Identifier: Apache-2.0
"""Examples in batches of rows, for programs that answer them: every process its share, always full."""

from collections.abc import Iterator
from typing import Protocol

from data_pipelines.collate import CollateSpec, TaskShape, blank_row, collate, make_row
from data_pipelines.example import Example
from launch.build import Run
from vllm2_jax.batch import TaskRows
from vllm2_jax.sharding.partition import batch_shards, host_share


class Examples(Protocol):
    """Random access to examples, which may be read from files one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def whole_rows(run: Run, rows: int) -> int:
    """`rows`, or the next number that splits over the devices of a host."""
    devices = batch_shards(run.mesh, run.strategy.rules) // host_share(run.mesh, run.strategy.rules)[1]
    return -(-rows // devices) * devices


def host_batches(
    run: Run, spec: CollateSpec, shape: TaskShape, rows: int, examples: Examples
) -> Iterator[tuple[list[tuple[int, Example]], TaskRows, dict[str, int]]]:
    """Batches of `rows` rows on this host, or of a few more that split over its devices, filled with padding.

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
    for start in range(0, len(examples), rows * parts):
        first = start + part * rows
        mine = [(i, examples[i]) for i in range(first, min(first + rows, len(examples)))]
        made = [make_row(example, run.tokenizer, spec, shape) for _, example in mine]
        batch, counters = collate([*made, *[blank] * (rows - len(made))], spec, shape)
        yield mine, batch, counters
