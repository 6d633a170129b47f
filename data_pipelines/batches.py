# SPDX-License-Identifier: Apache-2.0
"""Which rows go where: the rows of a global batch follow from its number alone, and a host makes its part.

A task's rows stand in one endless order. With G groups of r rows, batch b is rows `b * G * r` to
`(b + 1) * G * r`, and group g of it the r rows from `b * G * r + g * r` on. A host is told the numbers of its
groups and reads their rows, nothing else. So the place of a run in its data is one number a task, which means
the same on every host: a run goes on with any number of hosts, worker processes and threads.

Packed tasks are the exception: how many records a row takes is known only when it is full. There group g
packs records g, g + G, g + 2 G, ... by itself, and the place of a run is one place a group. Any host can go
on from it, but with the same G.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
from absl import flags

from data_pipelines.ahead import watch_reads
from data_pipelines.collate import CollateSpec, Row, TaskShape, collate
from data_pipelines.packing import pack
from vllm2_jax.batch import Inputs, TaskRows

_PACKING_BINS = 32  # rows packed side by side, at least
_LEAVE = 60  # seconds that a worker process outlives a SIGTERM

Collated = dict[str, tuple[TaskRows, dict[str, int]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a mixture.

    Attributes:
      rows: random access to its rows, endless.
      shape: its static shapes.
      blank: a row of padding.
    """

    rows: grain.MapDataset
    shape: TaskShape
    blank: Row


@dataclasses.dataclass(frozen=True)
class Layout:
    """What all batches of a host share.

    Attributes:
      tasks: name -> task.
      spec: of the collation.
      groups: G, over all hosts.
      mine: numbers of the groups that this host makes, in the order of its rows.
      threads: that read the rows of a batch.
      workers: processes that make batches; 0: this one.
      ahead: batches that are in the making at once.
      watch: seconds after which a worker process names a slow read; 0: never.
    """

    tasks: Mapping[str, Task]
    spec: CollateSpec
    groups: int
    mine: Sequence[int]
    threads: int
    workers: int = 0
    ahead: int = 0
    watch: float = 0.0

    def collate(self, name: str, rows: Sequence[Row]) -> tuple[TaskRows, dict[str, int]]:
        """The rows of this host's groups of one task, as arrays, and their counters."""
        return collate(rows, self.spec, self.tasks[name].shape)

    @property
    def packed(self) -> list[str]:
        """Tasks that are packed."""
        return [name for name, task in self.tasks.items() if task.shape.pack]


class Parts:
    """Makes this host's part of any batch, without packed tasks.

    Args:
      layout: of the batches.
      first: rows of each task that came before batch 0.
    """

    def __init__(self, layout: Layout, first: Mapping[str, int]):
        self._layout, self._first = layout, dict(first)
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}  # each process has its own threads

    def make(self, number: int) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
        """The rows of this host's groups of a batch, and their counters; see `_plain`."""
        wanted = [
            (name, self._first[name] + (number * self._layout.groups + group) * task.shape.rows + place)
            for name, task in self._layout.tasks.items()
            if not task.shape.pack
            for group in self._layout.mine
            for place in range(task.shape.rows)
        ]
        rows: dict[str, list[Row]] = {}
        for (name, _), row in zip(wanted, self._read(wanted), strict=True):
            rows.setdefault(name, []).append(row)
        made = {name: self._layout.collate(name, found) for name, found in rows.items()}
        return {name: (_plain(found), counters) for name, (found, counters) in made.items()}

    def _read(self, wanted: list[tuple[str, int]]) -> Iterator[Row]:
        def read(place: tuple[str, int]) -> Row:
            return self._layout.tasks[place[0]].rows[place[1]]

        if self._layout.threads < 2:
            return map(read, wanted)
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._layout.threads, "read-rows")
        return self._pool.map(read, wanted)


class Batches(grain.IterDataset):
    """Elements `{"batch": {task: TaskRows}, "counters": {"<task>/<counter>": int}}`."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout

    def __iter__(self) -> "BatchesIterator":
        return BatchesIterator(self.layout)


class BatchesIterator(grain.DatasetIterator):
    """See `Batches`.

    Its state is `{"rows": {task: rows drawn so far}}`, equal on all hosts, and for packed tasks
    `{"packed": {task: {group: place}}}` of this host's groups; hosts' states put together are that of all.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self._layout = layout
        self._drawn = dict.fromkeys(layout.tasks, 0)
        self._parts: grain.DatasetIterator | None = None
        self._packers = {
            name: {str(group): iter(_packed(layout, name, group)) for group in layout.mine}
            for name in layout.packed
        }

    def __next__(self) -> dict[str, Any]:
        made: Collated = {}
        if len(self._packers) < len(self._layout.tasks):
            if self._parts is None:
                self._parts = iter(_parts(self._layout, self._drawn))
            made |= {name: (_whole(plain), counters) for name, (plain, counters) in next(self._parts).items()}
        for name, packers in self._packers.items():
            count = self._layout.tasks[name].shape.rows
            rows = [next(packer) for packer in packers.values() for _ in range(count)]
            made[name] = self._layout.collate(name, rows)
        for name, task in self._layout.tasks.items():
            self._drawn[name] += self._layout.groups * task.shape.rows
        return {
            "batch": {name: made[name][0] for name in self._layout.tasks},
            "counters": {
                f"{name}/{what}": count
                for name in self._layout.tasks
                for what, count in made[name][1].items()
            },
        }

    def get_state(self) -> dict[str, Any]:
        """Where this host stands; JSON."""
        state: dict[str, Any] = {"rows": dict(self._drawn)}
        if self._packers:
            state["packed"] = {
                name: {group: packer.get_state() for group, packer in packers.items()}
                for name, packers in self._packers.items()
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state of one host, or of all put together.

        Raises:
          ValueError: it is of other tasks, or of packed tasks in another number of groups.
        """
        rows, packed = state.get("rows"), state.get("packed", {})
        if not isinstance(rows, dict) or set(rows) != set(self._drawn) or set(packed) != set(self._packers):
            raise ValueError(
                f"the place in the data is one of the tasks {_names(rows)} (packed: {_names(packed)}), the "
                f"mixture has {_names(self._drawn)} (packed: {_names(self._packers)}): resume with the same "
                "tasks, or start a new run with this workdir as config.init.weights"
            )
        for name, packers in self._packers.items():
            drawn = self._layout.groups * self._layout.tasks[name].shape.rows
            if not packers.keys() <= packed[name].keys() or rows[name] % drawn:
                raise ValueError(
                    f"the task {name!r} is packed, and its place is known for the groups "
                    f"{_names(packed[name])} only, not for {_names(packers)} of {self._layout.groups}: "
                    "resume with the same config.data.groups and rows of this task"
                )
        self._drawn = {name: int(rows[name]) for name in self._drawn}
        for name, packers in self._packers.items():
            for group, packer in packers.items():
                packer.set_state(packed[name][group])
        if self._parts is not None:
            self._parts.close()
            self._parts = None

    def close(self) -> None:
        """Ends threads and worker processes."""
        if self._parts is not None:
            self._parts.close()
        for packers in self._packers.values():
            for packer in packers.values():
                packer.close()


def _plain(rows: TaskRows) -> dict[str, Any]:
    """Dicts of arrays. Grain rebuilds what it moves between processes around other things than arrays, which
    a `TaskRows` that checks its shapes refuses."""
    return {**vars(rows), "inputs": dict(vars(rows.inputs))}


def _whole(plain: dict[str, Any]) -> TaskRows:
    return TaskRows(**{**plain, "inputs": Inputs(**plain["inputs"])})


def _parts(layout: Layout, first: Mapping[str, int]) -> grain.IterDataset:
    """The unpacked part of batches, in order, made in threads or worker processes."""
    parts = grain.MapDataset.range(sys.maxsize).map(Parts(layout, first).make)
    if not layout.workers:
        # Two at once: while the last rows of one are read, the threads begin with the next.
        together = min(2, layout.ahead) if layout.threads > 1 else 0
        return parts.to_iter_dataset(grain.ReadOptions(together, together))
    if not flags.FLAGS.is_parsed():  # outside of absl.app; Grain's workers read a flag of its own
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(layout.workers, per_worker_buffer_size=max(1, layout.ahead))
    return parts.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(
        options, functools.partial(_start_worker, layout.watch)
    )


def _start_worker(watch: float, number: int, count: int) -> None:
    """Runs first in each worker process."""
    # Some schedulers send SIGTERM to every process of a job: batches are needed up to the last step.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LEAVE))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if watch:
        watch_reads(watch)


def _end_with_parent() -> None:
    """A process that was killed leaves its workers behind; they would hold their memory for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _packed(layout: Layout, name: str, group: int) -> grain.IterDataset:
    """The packed rows of one group of a task."""
    task = layout.tasks[name]
    options = grain.ReadOptions(1, 2) if layout.threads > 1 else grain.ReadOptions(0, 0)
    rows = task.rows[group :: layout.groups].to_iter_dataset(options)
    return pack(rows, blank=task.blank, bins=max(_PACKING_BINS, task.shape.rows))


def _names(found: Any) -> str:
    return ", ".join(map(str, found or ())) or "none"
