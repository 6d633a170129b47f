# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a record: the same however often an epoch reads it, others in the next epoch.

Views, wordings and sampled classes then differ from epoch to epoch, and a resumed run still repeats an
undisturbed one: the epoch follows from the position in the stream.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import numpy as np

_EPOCH: contextvars.ContextVar[int] = contextvars.ContextVar("epoch", default=0)


@contextlib.contextmanager
def epoch(number: int) -> Iterator[None]:
    """Records read inside are those of epoch `number`; without it, of the first one, 0."""
    token = _EPOCH.set(number)
    try:
        yield
    finally:
        _EPOCH.reset(token)


def generator(seed: int, index: int) -> np.random.Generator:
    """The draws of record `index` of a source with this seed."""
    return np.random.default_rng([seed, index, _EPOCH.get()])
