# SPDX-License-Identifier: Apache-2.0
"""Masks read at points between their pixels, and the points where a mask is least decided.

A point is (x, y) in shares of the map. Comparing masks at some points instead of at all pixels, most of them
where the prediction is undecided, is PointRend's loss (Kirillov et al., 2020), as Mask2Former uses it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from vllm2_jax.ops.select import top


@struct.dataclass
class Points:
    """Where N masks of a row are compared; they share their points if that axis has length 1.

    Attributes:
      candidates: the least decided ones of these are taken, for each mask by itself.
      random: all of these are taken.
    """

    candidates: Float[Array, "*B C 2"]
    random: Float[Array, "*B R 2"]


def draw_points(
    key: jax.Array, shape: tuple[int, ...], count: int, *, oversample: float, importance: float
) -> Points:
    """Uniform points for `count` comparisons.

    Args:
      shape: axes in front.
      oversample: candidates for each comparison.
      importance: share of the comparisons made at candidates.
    """
    first, second = jax.random.split(key)
    return Points(
        jax.random.uniform(first, (*shape, int(count * oversample), 2)),
        jax.random.uniform(second, (*shape, count - int(importance * count), 2)),
    )


def read(
    maps: Float[Array, "B N h w"] | UInt8[Array, "B N h w"], points: Float[Array, "B #N P 2"]
) -> Float[Array, "B N P"]:
    """Bilinear values of maps at points (0 to 1); beyond the border is 0.

    The centre of pixel i is at (i + 0.5) / size, so values fall by half towards the border itself. Source:
    official `point_sample` (grid_sample with align_corners False and zero padding).
    """
    # Shared points are one gather of rows, N numbers each, where own points are N gathers.
    shared = points.shape[1] == 1
    of_row = jax.vmap(_read, in_axes=(0, None if shared else 0))
    return jax.vmap(of_row)(maps, points[:, 0] if shared else points)


def undecided(logits: Float[Array, "B *N C"], count: int) -> Int[Array, "B *N {count}"]:
    """Indices of the `count` logits closest to 0; no gradient."""
    return top(-jnp.abs(logits), count)[1]


def at_points(
    logits: Float[Array, "B N h w"], truth: UInt8[Array, "B N H W"], points: Points, count: int
) -> tuple[Float[Array, "B N {count}"], Float[Array, "B N {count}"]]:
    """Predicted logits and true values at the points of each mask, the least decided ones first.

    Args:
      truth: of any size; both cover the same square.
      points, count: of `draw_points`.
    """
    places = jnp.concatenate([points.candidates, points.random], axis=-2)
    found, wanted = read(logits, places), read(truth, places)
    candidates, fresh = points.candidates.shape[-2], points.random.shape[-2]
    chosen = undecided(found[..., :candidates], count - fresh)
    all_random = jnp.broadcast_to(jnp.arange(candidates, candidates + fresh), (*chosen.shape[:-1], fresh))
    index = jnp.concatenate([chosen, all_random], axis=-1)
    return jnp.take_along_axis(found, index, axis=-1), jnp.take_along_axis(wanted, index, axis=-1)


def _read(
    image: Float[Array, "h w"] | UInt8[Array, "h w"], points: Float[Array, "P 2"]
) -> Float[Array, " P"]:
    """`read` of one map: a window of 2 x 2 around each point, weighed by how near each pixel is."""
    framed = jnp.pad(image, 1)
    place = points[:, ::-1] * jnp.array(image.shape, jnp.float32) + 0.5  # (y, x), in pixels of `framed`
    corner = jnp.floor(place)
    windows = jax.vmap(lambda start: jax.lax.dynamic_slice(framed, start, (2, 2)))(corner.astype(jnp.int32))
    near = jnp.stack([1 - (place - corner), place - corner], axis=-1)  # [P, (y, x), (first, second)]
    # Not a product of matrices: an accelerator would round its operands.
    return (windows.astype(jnp.float32) * near[:, 0, :, None] * near[:, 1, None, :]).sum((1, 2))
