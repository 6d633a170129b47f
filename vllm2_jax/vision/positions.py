# SPDX-License-Identifier: Apache-2.0
"""Position tables for another grid of patches than the one they were learned on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# PyTorch's bicubic kernel. `jax.image.resize` uses -0.5, which gives other numbers.
_A = -0.75


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old] weights of `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`."""
    weights = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        start = math.floor(center)
        for tap in range(start - 1, start + 3):
            # Taps outside read the border cell.
            weights[i, min(max(tap, 0), old - 1)] += _cubic(abs(center - tap))
    return weights.astype(np.float32)


def _cubic(d: float) -> float:
    if d <= 1:
        return ((_A + 2) * d - (_A + 3)) * d * d + 1
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A if d < 2 else 0.0


def resize_positions(table: Float[Array, "T V"], grid: int) -> Float[Array, "T2 V"]:
    """A table of a class row and a square grid, for a grid of `grid` x `grid` patches; in float32.

    The class row stays as it is. Source: InternViT's `_get_pos_embed` and `resize_pos_embeddings`.
    """
    old = math.isqrt(len(table) - 1)
    if old * old != len(table) - 1:
        raise ValueError(f"a position table of {len(table)} rows is not a class row and a square grid")
    table = table.astype(jnp.float32)
    if old == grid:
        return table
    weights = bicubic_weights(old, grid)
    cells = table[1:].reshape(old, old, -1)
    cells = jnp.einsum("ah,bw,hwv->abv", weights, weights, cells, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:1], cells.reshape(grid * grid, -1)])
