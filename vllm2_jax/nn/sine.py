# SPDX-License-Identifier: Apache-2.0
"""Sine embeddings of positions: of a number, of a box, of the cells of a padded feature map. No parameters.

Channels 2i and 2i + 1 are the sine and cosine of one angle, in float32.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sine(
    x: Float[Array, "*B"] | Int[Array, "*B"], channels: int, *, temperature: float = 10_000.0
) -> Float[Array, "*B {channels}"]:
    """Sines and cosines of `2 pi x / temperature ** (2 i / channels)`, i = 0, 1, ..., interleaved.

    Raises:
      ValueError: an odd number of channels.
    """
    if channels % 2:
        raise ValueError(f"{channels} channels cannot be pairs of sine and cosine; give an even number")
    steps = temperature ** (jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    angle = x.astype(jnp.float32)[..., None] * (2 * math.pi) / steps
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*x.shape, channels)


def sine_boxes(boxes: Float[Array, "*B C"], channels: int) -> Float[Array, "*B _"]:
    """Points (x, y) or boxes (x, y, w, h), 0 to 1; `channels` for each number, in the order y, x, w, h.

    Raises:
      ValueError: neither two nor four numbers.
    """
    if boxes.shape[-1] not in (2, 4):
        raise ValueError(f"points have 2 numbers and boxes 4, these have {boxes.shape[-1]}")
    boxes = jnp.concatenate([boxes[..., 1::-1], boxes[..., 2:]], axis=-1)
    return sine(boxes, channels).reshape(*boxes.shape[:-1], -1)


def sine_2d(
    valid: Bool[Array, "B H W"], channels: int, *, temperature_h: float = 20.0, temperature_w: float = 20.0
) -> Float[Array, "B H W {channels}"]:
    """Cells of feature maps by their place in the picture: half of the channels for y, half for x.

    A cell's place is its count among the valid cells of its column (row), divided by the count at the end, so
    padding at the bottom and right does not stretch a picture. No half-cell offset, as in the official code.

    Args:
      valid: True inside the picture.
      channels: a multiple of 4.
    """
    y, x = (jnp.cumsum(valid, axis, dtype=jnp.float32) for axis in (1, 2))
    y, x = y / (y[:, -1:] + 1e-6), x / (x[:, :, -1:] + 1e-6)
    half = channels // 2
    return jnp.concatenate(
        [sine(y, half, temperature=temperature_h), sine(x, half, temperature=temperature_w)], axis=-1
    )
