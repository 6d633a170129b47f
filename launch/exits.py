# SPDX-License-Identifier: Apache-2.0
"""What a program ends with: who reads the code, a scheduler or a person, knows whether to start it again."""

from data_pipelines.errors import DataError, StalledError
from vllm2_jax.train.checkpoint import SaveError
from vllm2_jax.train.fate import PeerError
from vllm2_jax.train.monitor import NotFiniteError

# The first that fits. 1 is everything else.
_CODES = (
    ((StalledError, SaveError), 4),
    ((NotFiniteError,), 3),
    ((DataError, ValueError, FileNotFoundError), 2),
)


def exit_code(error: BaseException) -> int:
    """2: config or data; 3: the loss is not finite; 4: storage; 1: else. That of the process that failed."""
    if isinstance(error, PeerError):
        return error.code
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), 1)
