# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: SIGTERM, which schedulers send before they take a machine away."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether to stop; several processes all stop at the same call of it.

    Each process has to call it as often as the others.
    """
    if jax.process_count() > 1:
        # jax.distributed catches the signal in whichever process it reaches and agrees on a number that all
        # processes can still reach: that of a call, as steps begin anywhere and have none while a run waits.
        calls = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    asked = False

    def note(*_):
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
