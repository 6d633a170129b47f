# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run went: seconds by bucket, and which share of them trained (goodput).

Measured on the host, without waiting for the devices where the loop would not. The buckets: "init" (finding
the other hosts, building, restoring), "compile" (tracing and compiling the step, or fetching it from the
cache), "data" (the devices had nothing to do because no batch was there), "step", "checkpoint" (the loop
stood still for one), "evaluation", and "other".
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

BUCKETS = ("init", "compile", "data", "step", "checkpoint", "evaluation")


class Clock:
    """Seconds spent in each of `BUCKETS` since it was made; what no bucket holds is "other"."""

    def __init__(self):
        self._start = time.perf_counter()
        self.seconds = dict.fromkeys(BUCKETS, 0.0)

    @contextlib.contextmanager
    def on(self, bucket: str, hidden: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Counts the time of a `with` block.

        Args:
          bucket: where it goes.
          hidden: asked at the end of the block; if it says that the devices still work, nothing was lost, and
            the time goes to "step".
        """
        if bucket not in self.seconds:
            raise ValueError(f"unknown time bucket {bucket!r}; choose one of {', '.join(BUCKETS)}")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds["step" if hidden() else bucket] += time.perf_counter() - start

    def values(self) -> dict[str, float]:
        """`seconds/<bucket>` and `seconds/total` since the start, `time/<bucket>` as parts of 1."""
        total = time.perf_counter() - self._start
        seconds = {**self.seconds, "other": max(0.0, total - sum(self.seconds.values()))}
        shares = {f"time/{name}": value / total for name, value in seconds.items()}
        return {f"seconds/{name}": value for name, value in seconds.items()} | {
            "seconds/total": total,
            **shares,
        }


def whole_run(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The time of a run over all its starts.

    Args:
      lines: of `metrics.jsonl`. A start opens with a line that has no loss; its step is the one it goes on
        from.

    Returns:
      Seconds: "total" from the first start to the last line; in it "idle" between the starts, "lost" in steps
      that a later start did again, and the buckets; and "starts", their number. Empty without lines.
    """
    starts: list[list[Mapping[str, Any]]] = []
    for line in lines:
        if "seconds/total" not in line:
            continue
        # A process that began after the last line was written is another start. One that was only suspended
        # looks like it, as its clock stood still; but it has done steps.
        born = line["time"] - line["seconds/total"]
        if not starts or (born > starts[-1][-1]["time"] and not line["seconds/step"]):
            starts.append([])
        starts[-1].append(line)
    if not starts:
        return {}
    found = {name: sum(start[-1][f"seconds/{name}"] for start in starts) for name in (*BUCKETS, "other")}
    lost = 0.0
    for start, following in itertools.pairwise(starts):
        done = start[-1]["step"] - start[0]["step"]
        again = start[-1]["step"] - following[0]["step"]
        lost += start[-1]["seconds/step"] * max(0, again) / max(1, done)
    opened = starts[0][0]["time"] - starts[0][0]["seconds/total"]
    total = starts[-1][-1]["time"] - opened
    ran = sum(start[-1]["seconds/total"] for start in starts)
    found |= {"step": found["step"] - lost, "lost": lost, "idle": max(0.0, total - ran)}
    return found | {"total": total, "starts": len(starts)}


def describe(found: Mapping[str, float]) -> str:
    """One line for people about what `whole_run` found."""
    parts = sorted(
        ((name, value) for name, value in found.items() if name not in ("total", "starts")),
        key=lambda part: -part[1],
    )
    total = max(found["total"], 1e-9)
    text = ", ".join(f"{name} {value:.1f} s ({value / total:.1%})" for name, value in parts if value >= 0.05)
    times = "start" if found["starts"] == 1 else "starts"
    return f"goodput {found['step'] / total:.1%} of {total:.1f} s in {found['starts']} {times}: {text}"
