# SPDX-License-Identifier: Apache-2.0
"""The decoders that paint against the committed part of their golden set.

That part has the autoencoder's encoder, the text encoder, the mapper, the first blocks of the UNet, a step of
training each decoder with what its UNet said, and two recorded samplings of one row each. The rest of the
networks, their gradients and pictures are compared by `python -m tests.parity`.
"""

import pathlib

import pytest

from tests.parity import COMPONENTS, differing

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "diffusion"
PARTS = COMPONENTS["diffusion"]


@pytest.mark.parametrize("part", PARTS)
def test_official_numbers(part):
    assert differing(PARTS[part], GOLDENS) == []
