# SPDX-License-Identifier: Apache-2.0
"""What a step of a program costs: its time, and how much memory the process has ever held."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def timed(step: str, wanted: bool = True) -> Iterator[None]:
    """Prints what a step took, if `wanted`."""
    start = time.monotonic()
    yield
    if wanted:
        print(
            f"{step}: {time.monotonic() - start:.0f} s, peak memory {peak_memory() / 2**30:.2f} GiB",
            flush=True,
        )
