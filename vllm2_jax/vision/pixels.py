# SPDX-License-Identifier: Apache-2.0
"""Pixels travel as uint8 and are normalised on the device: tiles of the towers, pictures of the detectors."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

# OpenAI CLIP's statistics of RGB in [0, 1]; the official code uses them for InternViT as well.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# ImageNet's statistics, of the detectors' backbones: (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375).
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(
    tiles: UInt8[Array, "*B S S 3"] | Float[Array, "*B S S 3"], dtype: DTypeLike
) -> Float[Array, "*B S S 3"]:
    """uint8 RGB to CLIP's normalised floats; floats are taken to be normalised already."""
    if tiles.dtype == jnp.uint8:
        tiles = (tiles.astype(jnp.float32) / 255 - CLIP_MEAN) / CLIP_STD
    return tiles.astype(dtype)


def frame(
    image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], size: Int[Array, "B 2"], dtype: DTypeLike
) -> tuple[Float[Array, "B H W 3"], Bool[Array, "B H W"]]:
    """What a detector sees: the picture normalised with ImageNet's statistics, and where; zeros around it.

    Args:
      image: RGB with the picture at the top left; floats are taken to be normalised already.
      size: height and width of the picture inside; at least one pixel, so that rows without one make no NaN.
    """
    size = jnp.maximum(size, 1)
    rows = jnp.arange(image.shape[1]) < size[:, :1]
    columns = jnp.arange(image.shape[2]) < size[:, 1:]
    inside = rows[:, :, None] & columns[:, None]
    if image.dtype == jnp.uint8:
        image = (image.astype(jnp.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return jnp.where(inside[..., None], image, 0).astype(dtype), inside
