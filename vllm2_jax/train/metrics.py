# SPDX-License-Identifier: Apache-2.0
"""Metrics that carry their weights, and where they are written: JSON lines always, TensorBoard if it can."""

import importlib.util
import json
import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
from clu import metrics as clu_metrics
from etils import epath
from flax import struct

from vllm2_jax.train.paths import PathLike, in_bucket, place

# (sum, weight) as `jax.device_get` returns it.
HostWeighted = tuple[np.ndarray, np.ndarray]

_UPLOAD = 10.0  # seconds between two uploads of the same object; Cloud Storage takes one a second


@struct.dataclass
class WeightedMean(clu_metrics.Average):
    """clu's average with a weight that need not be a count; 0 where nothing was weighed."""

    @classmethod
    def of(cls, value: HostWeighted) -> "WeightedMean":
        """From one (sum, weight)."""
        return cls(total=value[0], count=value[1])

    def compute(self) -> float:
        """sum / max(weight, 1), as in the loss."""
        return float(self.total) / max(float(self.count), 1.0) if self.count else 0.0


class Window:
    """Adds up the metrics of several steps (host numbers) until they are written."""

    def __init__(self):
        self._sums: dict[str, WeightedMean] = {}

    def add(self, metrics: Mapping[str, HostWeighted]) -> None:
        """Adds the metrics of one step; a task that is absent from a step just adds nothing.

        One bad step does not hide the others: what is not finite counts only if nothing else is there.
        """
        for name, value in metrics.items():
            new, old = WeightedMean.of(value), self._sums.get(name)
            if old is None or not np.isfinite(old.total):
                self._sums[name] = new
            elif np.isfinite(new.total):
                self._sums[name] = old.merge(new)

    def take(self) -> dict[str, float]:
        """Means by name, and an empty window."""
        values = {name: mean.compute() for name, mean in self._sums.items()}
        self._sums = {}
        return values


class _Object:
    """A text file in a bucket, where objects cannot grow: kept here, written whole from time to time."""

    def __init__(self, path: epath.Path):
        self._path, self._due = path, 0.0
        self._text = path.read_text() if path.exists() else ""

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() >= self._due:
            self.close()

    def close(self) -> None:
        self._path.write_text(self._text)
        self._due = time.monotonic() + _UPLOAD


class Writer:
    """Writes scalars to `metrics.jsonl`, one object a line, and to TensorBoard where TensorFlow is installed.

    Only process 0 writes. Lines are flushed at once, so that a run that dies loses none; in a bucket it may
    lose those of the last ten seconds.
    """

    def __init__(self, directory: PathLike, *, enabled: bool = True):
        self._file: _Object | TextIO | None = None
        self._board = None
        if not enabled:
            return
        folder = place(directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if in_bucket(path):
            self._file = _Object(path)
        else:
            _cut_torn_line(path)
            self._file = open(path, "a", encoding="utf-8")
        if importlib.util.find_spec("tensorflow"):
            from clu import metric_writers  # imports TensorFlow

            self._board = metric_writers.SummaryWriter(str(directory))

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """One line: `step`, `time` (seconds since 1970) and the values; what is not finite becomes null."""
        if self._file is None:
            return
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, values)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _cut_torn_line(path: epath.Path) -> None:
    """A run that died while it wrote, or on a full disk, leaves half a line, which no reader could parse."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read(directory: PathLike) -> list[dict[str, Any]]:
    """All lines of a run's `metrics.jsonl`; after a resume the lines of repeated steps stand twice.

    A start opens with a line, and ends with one, that have times (see `goodput`) and no losses.
    """
    text = (place(directory) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
