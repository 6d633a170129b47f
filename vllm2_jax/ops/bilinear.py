# SPDX-License-Identifier: Apache-2.0
"""Which cells of a feature map a point between them touches, and how much of each it takes.

Positions are in cells: the centre of cell i is at i. What lies outside of the map counts as 0.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def hat(t: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Share of a cell at a signed distance of `t` cells: 1 - |t|, and 0 from 1 on.

    The slope at a kink is the one to its right, as in the official code, where a point on the centre of a
    cell lies between it and the *next* one. Attention starts with all points on centres.
    """
    return jnp.where((t < -1) | (t >= 1), 0.0, jnp.where(t < 0, 1 + t, 1 - t))


def corners(
    x: Float[Array, "*B"],
    y: Float[Array, "*B"],
    shape: tuple[int, int] | Int[np.ndarray, "2 K"],
    *,
    axis: int = 0,
) -> tuple[Int[Array, "*B"], Float[Array, "..."]]:
    """A block of 2 x 2 cells inside the map that holds every cell a point touches.

    Args:
      x, y: the points.
      shape: height and width of the map, or of K maps if points differ in it along their last axis.
      axis: where the shares get an axis for their four cells.

    Returns:
      The index (row by row) of the block's upper left cell, and the shares of its cells: upper left, upper
      right, lower left, lower right. Of a map that is one cell high or wide the block sticks out; what sticks
      out has share 0. NaN points get block 0 and NaN shares.
    """
    height, width = (np.asarray(size, np.int32) for size in shape)
    top, left = _first(y, height), _first(x, width)
    index = top.astype(jnp.int32) * width + left.astype(jnp.int32)
    # One formula for the four, not four results stacked: a CPU computes it in long vectors.
    down, right = (np.reshape(step, (4, *[1] * (x.ndim - axis))) for step in ((0, 0, 1, 1), (0, 1, 0, 1)))
    shares = hat(jnp.expand_dims(y - top, axis) - down) * hat(jnp.expand_dims(x - left, axis) - right)
    inside = (down < height) & (right < width)
    return index, shares if inside.all() else jnp.where(inside, shares, 0)


def _first(x, size):
    """The first of two neighbouring cells along one side."""
    return jnp.clip(jnp.floor(jnp.nan_to_num(x)), 0, np.maximum(size - 2, 0).astype(np.float32))
