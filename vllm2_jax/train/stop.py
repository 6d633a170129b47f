# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: SIGTERM, which schedulers send before they take a machine away."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Gives a function (step) -> whether to stop after it; several processes all stop at the same one."""
    if jax.process_count() > 1:
        # jax.distributed catches the signal in whichever process it reaches and agrees on a step that all
        # processes can still reach.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def note(*_):
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda step: asked
    finally:
        signal.signal(signal.SIGTERM, before)
