# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: seconds by bucket, the share of useful time (goodput), step time, profiler window."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax

BUCKETS = ("init", "compile", "data", "step", "checkpoint", "eval")


class Clock:
    """Seconds spent in each of `BUCKETS` since it was made; what no bucket holds is "other"."""

    def __init__(self):
        self._start = time.perf_counter()
        self.seconds = dict.fromkeys(BUCKETS, 0.0)

    @contextlib.contextmanager
    def on(self, bucket: str) -> Iterator[None]:
        """Counts the time of a `with` block."""
        if bucket not in self.seconds:
            raise ValueError(f"unknown time bucket {bucket!r}; choose one of {', '.join(BUCKETS)}")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[bucket] += time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """`time/<bucket>` as parts of 1; `time/step` is the goodput."""
        total = time.perf_counter() - self._start
        shares = {f"time/{name}": seconds / total for name, seconds in self.seconds.items()}
        return shares | {"time/other": max(0.0, 1 - sum(shares.values()))}


class Rate:
    """Step time and tokens a second between two calls of `take`."""

    def __init__(self):
        self._last = time.perf_counter()

    def take(self, steps: int, tokens: float) -> dict[str, float]:
        """Seconds a step and tokens a second since the last call.

        Args:
          steps: steps done since then.
          tokens: columns that are not padding in all of them, over all devices.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return {"seconds_a_step": seconds / max(steps, 1), "tokens_a_second": tokens / seconds}


class TraceWindow:
    """Records a profile of some steps for xprof or TensorBoard."""

    def __init__(self, directory: str | pathlib.Path, first: int, steps: int):
        """Writes `steps` steps (0: none) from step `first` on to `directory`."""
        self._directory, self._first, self._last = str(directory), first, first + steps
        self._on = False

    def before(self, step: int) -> None:
        """To be called before each step; starts the window when its time has come, and ends it."""
        if not self._on and self._first <= step < self._last:
            jax.profiler.start_trace(self._directory)
            self._on = True
        elif self._on and step >= self._last:
            self.close()

    def close(self) -> None:
        """Ends the window if it is open."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
