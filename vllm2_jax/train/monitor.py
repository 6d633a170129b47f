# SPDX-License-Identifier: Apache-2.0
"""Watches a run: reads the metrics of finished steps, writes them, and stops a run that has gone wrong."""

import collections
import math
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from vllm2_jax.train.goodput import Clock
from vllm2_jax.train.metrics import Window, Writer
from vllm2_jax.train.profile import Rate, programs


class NotFiniteError(ArithmeticError):
    """The loss or the gradient was not finite for too many steps in a row."""


class Monitor:
    """Holds at most one step whose metrics are still on the devices: the loop never waits for the newest."""

    def __init__(self, writer: Writer, clock: Clock, bar: tqdm, *, every: int, last: int, bad_steps: int):
        """Writes every `every` steps and at step `last`; raises after `bad_steps` bad steps in a row."""
        self._writer, self._clock, self._bar = writer, clock, bar
        self._every, self._last, self._bad_steps = every, last, bad_steps
        self._window, self._rate = Window(), Rate()
        self._pending: tuple[int, Any, Mapping[str, int]] | None = None
        self._counters: collections.Counter[str] = collections.Counter()
        self._bad = self._added = 0

    def follow(self, step: int, metrics: Any, counters: Mapping[str, int]) -> None:
        """Takes the metrics of a step that has just been started, and settles the one before it.

        Args:
          step: its number.
          metrics: name -> (sum, weight), on the devices.
          counters: what the data side has counted in this batch, such as skipped records; written as sums
            since the run was started or resumed, of this process alone.

        Raises:
          NotFiniteError: see `settle`.
        """
        self.settle()
        self._pending = (step, metrics, counters)

    def running(self) -> bool:
        """Whether the devices are still at the pending step; asks without waiting."""
        return self._pending is not None and not self._pending[1]["finite"][0].is_ready()

    def settle(self) -> None:
        """Waits for the pending step, if there is one; adds up and writes its metrics.

        Raises:
          NotFiniteError: names the step and the losses, after `bad_steps` in a row were not finite.
        """
        if self._pending is None:
            return
        step, metrics, counters = self._pending
        self._counters.update(counters)
        self._pending = None
        metrics = jax.device_get(metrics)
        self._window.add(metrics)
        self._added += 1
        self._bar.update()
        self._bad = 0 if metrics["finite"][0] else self._bad + 1
        if self._bad >= self._bad_steps:
            names = [name for name, value in metrics.items() if not math.isfinite(value[0])]
            raise NotFiniteError(
                f"step {step}: not finite for {self._bad} steps in a row: {', '.join(names)}. None of these "
                "steps has changed the weights. Lower optimizer.peak or look at the data of these steps, "
                "then start the run again: it goes on from its last checkpoint"
            )
        if step % self._every == 0 or step == self._last:
            values = self._window.take()
            values |= self._rate.take(self._added, values["tokens"] * self._added)
            self._added = 0
            values |= self._clock.values() | programs().values()
            values |= {f"data/{name}": count for name, count in self._counters.items()}
            rate = f"{values['tokens_a_second']:.3g}"
            self._bar.set_postfix(loss=f"{values['loss']:.4g}", tokens_a_second=rate)
            self._writer.write(step, values)
