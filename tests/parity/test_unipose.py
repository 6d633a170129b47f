# SPDX-License-Identifier: Apache-2.0
"""The pose decoder against the committed part of its golden set.

That part has all weights but the backbone's (whose maps are recorded) and the runs with few instances. Single
blocks, gradients and the official number of instances are compared by `python -m tests.parity`.
"""

import functools
import pathlib

import pytest

from tests.parity import (
    differing,
    unipose_criterion,
    unipose_inference,
    unipose_keypoints,
    unipose_links,
    unipose_training,
    unipose_units,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "unipose"
PARTS = {
    "units": unipose_units.cases,
    "keypoints": unipose_keypoints.cases,
    "links": unipose_links.cases,
    "criterion": functools.partial(unipose_criterion.cases, suffixes=("_small",)),
    "inference": functools.partial(unipose_inference.cases, suffixes=("_small",)),
    "training": functools.partial(unipose_training.training, suffix="_small", gradients=False),
}


@pytest.mark.parametrize("part", PARTS)
def test_official_numbers(part):
    assert differing(PARTS[part], GOLDENS) == []
