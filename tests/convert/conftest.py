# SPDX-License-Identifier: Apache-2.0
"""What several of these files read; nobody writes to it."""

import pytest

from tests.convert import small_official


@pytest.fixture(scope="session")
def tensors():
    """Official names and random bfloat16 arrays."""
    return small_official.random_tensors()
