# SPDX-License-Identifier: Apache-2.0
"""Which cells of a feature map a point between them touches, and how much of each it takes.

Positions are in cells: the centre of cell i is at i. What lies outside of the map counts as 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def hat(t: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Share of a cell at a signed distance of `t` cells: 1 - |t|, and 0 from 1 on.

    The slope at a kink is the one to its right, as in the official code, where a point on the centre of a
    cell lies between it and the *next* one. Attention starts with all points on centres.
    """
    return jnp.where((t < -1) | (t >= 1), 0.0, jnp.where(t < 0, 1 + t, 1 - t))


def corners(
    x: Float[Array, "*B"], y: Float[Array, "*B"], shape: tuple[int, int]
) -> tuple[Int[Array, "*B"], Float[Array, "4 *B"]]:
    """A block of 2 x 2 cells inside the map that holds every cell a point touches.

    Returns:
      The index (row by row) of the block's upper left cell, and the shares of its cells: upper left, upper
      right, lower left, lower right. Of a map that is one cell high or wide the block sticks out; what sticks
      out has share 0. NaN points get block 0 and NaN shares.
    """
    (top, over), (left, beside) = _pair(y, shape[0]), _pair(x, shape[1])
    index = top * shape[1] + left
    return index, jnp.stack([over[i] * beside[j] for i in (0, 1) for j in (0, 1)])


def _pair(x, size):
    """The first of two neighbouring cells along one side, and both shares."""
    first = jnp.clip(jnp.floor(jnp.nan_to_num(x)), 0, max(size - 2, 0))
    second = hat(x - first - 1) if size > 1 else jnp.zeros_like(x)
    return first.astype(jnp.int32), (hat(x - first), second)
