# SPDX-License-Identifier: Apache-2.0
"""The grounding decoder against the committed part of its golden set.

That part has the weights of what comes after the encoder, whose cells are recorded, and the masks that were
matched. Pictures, the encoder and the gradients of masks are compared by `python -m tests.parity`.
"""

import pathlib

import pytest

from tests.parity import COMPONENTS, differing

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "grounding_dino"
PARTS = {
    name: COMPONENTS["grounding_dino"][name] for name in ("matcher", "criterion", "decoding", "postproc")
}


@pytest.mark.parametrize("part", PARTS)
def test_official_numbers(part):
    assert differing(PARTS[part], GOLDENS) == []
