# SPDX-License-Identifier: Apache-2.0
"""The golden comparisons that run everywhere: on the part of the golden set that is committed.

`python -m tests.parity` runs all of them, on any folder.
"""

import functools
import pathlib

import numpy as np
import pytest

from tests.parity import COMPONENTS, compare, differing, full

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "core"
PARTS = dict(COMPONENTS["core"])
# Only these files of the whole model are committed; they cover every source of a column and the gradients.
PARTS["full"] = functools.partial(full.cases, names=("full_pad_det",))


@pytest.mark.parametrize("part", PARTS)
def test_official_numbers(part):
    assert differing(PARTS[part], GOLDENS) == []


def test_a_wrong_number_is_noticed():
    want = np.ones(3, np.float32)
    assert compare("x", want + 2e-5, want).ok
    assert not compare("x", want + 4e-5, want).ok
    assert not compare("grad/x", 1e-2 * (want + 2e-4), 1e-2 * want).ok
    assert not compare("x", np.full(3, np.nan), want).ok
    assert not compare("x", want[:2], want).ok
    assert not compare("ids", np.array([1, 2]), np.array([1, 3])).ok
