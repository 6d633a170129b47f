# SPDX-License-Identifier: Apache-2.0
"""Timing of several ways to do one thing, in turns."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Timed = Callable[[], Any]


def race(sides: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every side, in turns; the first call of each is not counted."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def show(title: str, times: dict[str, list[float]], units: int, unit: str) -> None:
    """A table of one race; the ratio says how many times faster we are."""
    best = {name: min(found) for name, found in times.items()}
    print(f"\n{title}")
    for name, found in times.items():
        print(
            f"  {name:<18} best {best[name]:8.3f} s   median {np.median(found):8.3f} s   "
            f"{units / best[name]:9.0f} {unit}/s   ratio {best[name] / best['ours']:.2f}"
        )
