# SPDX-License-Identifier: Apache-2.0
"""Pixel statistics of the towers: uint8 tiles travel to the device and are normalised there."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

# OpenAI CLIP's statistics of RGB in [0, 1]; the official code uses them for InternViT as well.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize(
    tiles: UInt8[Array, "*B S S 3"] | Float[Array, "*B S S 3"], dtype: DTypeLike
) -> Float[Array, "*B S S 3"]:
    """uint8 RGB to CLIP's normalised floats; floats are taken to be normalised already."""
    if tiles.dtype == jnp.uint8:
        tiles = (tiles.astype(jnp.float32) / 255 - CLIP_MEAN) / CLIP_STD
    return tiles.astype(dtype)
