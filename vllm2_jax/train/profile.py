# SPDX-License-Identifier: Apache-2.0
"""How fast a run is: step time, programs that had to be compiled, the profiler's window."""

import functools
import time

import jax
from absl import logging

from vllm2_jax.train.paths import PathLike, place

REQUESTED = 5  # steps that an empty request records


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


class Programs:
    """Counts the programs that this process has made ready, and those of them that the compile cache had.

    The cache is the one of jax: a folder or a bucket in the variable JAX_COMPILATION_CACHE_DIR.
    """

    def __init__(self):
        self.ready, self.cached, self.seconds = 0, 0, 0.0
        jax.monitoring.register_event_listener(self._event)
        jax.monitoring.register_event_duration_secs_listener(self._duration)

    def _event(self, event: str, **_: str | int) -> None:
        self.cached += event == "/jax/compilation_cache/cache_hits"

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.ready += 1
            self.seconds += duration_secs

    def values(self) -> dict[str, int]:
        """`programs/ready` and `programs/cached`; a step that is compiled again shows in the first."""
        return {"programs/ready": self.ready, "programs/cached": self.cached}

    def describe(self) -> str:
        """One line for the log."""
        folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        where = f"the compile cache {folder} had {self.cached} of them" if folder else "without compile cache"
        return f"{self.ready} programs ready, compiled or fetched in {self.seconds:.1f} s; {where}"


@functools.cache
def programs() -> Programs:
    """The counter of this process; it counts from the first call on."""
    return Programs()


class TraceWindow:
    """Records a profile of some steps for xprof or TensorBoard, in the folder `profile` of a run.

    The window is planned, or asked for by a file PROFILE that is written into the run's folder: it holds the
    number of steps, or nothing. All processes look at the same steps, so all record the same ones, unless the
    file appears between two looks at it.
    """

    def __init__(self, workdir: PathLike, first: int, steps: int):
        """Plans `steps` steps (0: none) from step `first` on."""
        self._folder, self._request = place(workdir) / "profile", place(workdir) / "PROFILE"
        self._first, self._last = first, first + steps
        self._on = False
        self._seen = self._written()

    def before(self, step: int) -> None:
        """To be called before each step; starts the window when its time has come, and ends it."""
        if not self._on and self._first <= step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif self._on and step >= self._last:
            self.close()

    def look(self, step: int) -> None:
        """Looks for a request, whose window starts with the step after `step`. In a bucket it takes time."""
        written = self._written()
        if written == self._seen:
            return
        self._seen = written
        if written is not None:
            text = self._request.read_text().strip()
            if text and not text.isdigit():
                logging.warning("%s says %r, no number; taking %d", self._request, text, REQUESTED)
            self._first = step + 1
            self._last = self._first + (int(text) if text.isdigit() else REQUESTED)
            logging.info("recording steps %d to %d to %s", self._first, self._last - 1, self._folder)

    def _written(self) -> int | None:
        """When the request was written; None without one."""
        return self._request.stat().mtime if self._request.exists() else None

    def close(self) -> None:
        """Ends the window if it is open."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            logging.info("a profile lies in %s", self._folder)
