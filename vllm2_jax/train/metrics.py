# SPDX-License-Identifier: Apache-2.0
"""Metrics that carry their weights, and where they are written: JSON lines always, TensorBoard if it can."""

import importlib.util
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metrics as clu_metrics
from flax import struct

# (sum, weight) as `jax.device_get` returns it.
HostWeighted = tuple[np.ndarray, np.ndarray]


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
        """Adds the metrics of one step; a task that is absent from a step just adds nothing."""
        for name, value in metrics.items():
            new = WeightedMean.of(value)
            self._sums[name] = self._sums[name].merge(new) if name in self._sums else new

    def take(self) -> dict[str, float]:
        """Means by name, and an empty window."""
        values = {name: mean.compute() for name, mean in self._sums.items()}
        self._sums = {}
        return values


class Writer:
    """Writes scalars to `metrics.jsonl`, one object a line, and to TensorBoard where TensorFlow is installed.

    Only process 0 writes. Lines are flushed at once, so that a run that dies loses none.
    """

    def __init__(self, directory: str | pathlib.Path, *, enabled: bool = True):
        self._file, self._board = None, None
        if not enabled:
            return
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        self._file = open(pathlib.Path(directory) / "metrics.jsonl", "a", encoding="utf-8")
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


def read(directory: str | pathlib.Path) -> list[dict[str, Any]]:
    """All lines of a run's `metrics.jsonl`; after a resume the lines of repeated steps stand twice."""
    with open(pathlib.Path(directory) / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
