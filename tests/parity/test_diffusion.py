# SPDX-License-Identifier: Apache-2.0
"""The decoders that paint against the committed part of their golden set.

That part has the autoencoder's encoder, the text encoder, the mapper, the first blocks of the UNet, a step of
training each decoder with what its UNet said, and two recorded samplings of one row each. The rest of the
networks, their gradients and pictures are compared by `python -m tests.parity`.
"""

import pathlib

import jax
import pytest

from tests.parity import COMPONENTS, compare

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "diffusion"
PARTS = COMPONENTS["diffusion"]


@pytest.mark.parametrize("part", PARTS)
def test_official_numbers(part):
    with jax.default_matmul_precision("highest"):
        found = [compare(name, got, want) for name, got, want in PARTS[part](GOLDENS)]
    assert found
    assert [str(result) for result in found if not result.ok] == []
