# SPDX-License-Identifier: Apache-2.0
"""Masks read at points between their pixels, and the points where a mask is least decided.

A point is (x, y) in shares of the map. Comparing masks at some points instead of at all pixels, most of them
where the prediction is undecided, is PointRend's loss (Kirillov et al., 2020), as Mask2Former uses it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, UInt8

from vllm2_jax.nn.deformable import sample


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


@struct.dataclass
class Samples:
    """What N predicted masks of a row and the true ones are made of at P points.

    Attributes:
      features: whose products with the embeddings of masks are logits; n is N, or 1 where masks share points.
      truth: value of each true mask, 0 to 1.
      candidates: how many of the points, from the first, are candidates.
    """

    features: Float[Array, "*B n P M"]
    truth: Float[Array, "*B N P"]
    candidates: int = struct.field(pytree_node=False)

    def logits(self, masks: Float[Array, "B N M"]) -> Float[Array, "B N P"]:
        """Predicted masks at the points, float32.

        Features are read and multiplied, not masks multiplied and read: both are linear, and no mask of all
        its pixels is needed, nor its gradient.
        """
        if self.features.shape[1] == 1:
            wanted, features = "bnm,bpm->bnp", self.features[:, 0]
        else:
            wanted, features = "bnm,bnpm->bnp", self.features
        return jnp.einsum(wanted, masks, features, preferred_element_type=jnp.float32)

    def chosen(self, logits: Float[Array, "B N P"], count: int) -> Bool[Array, "B N P"]:
        """True at the `count` points to compare: the least decided candidates and all random ones."""
        fresh = jnp.ones((*logits.shape[:-1], logits.shape[-1] - self.candidates), bool)
        found = undecided(logits[..., : self.candidates], count - fresh.shape[-1])
        return jnp.concatenate([found, fresh], axis=-1)


def at_points(features: Float[Array, "B h w M"], truth: UInt8[Array, "B N H W"], points: Points) -> Samples:
    """Features and true masks between their pixels; both cover the same square, at any size.

    Args:
      points: of `draw_points`, [B, n, ..., 2]; n is N, or 1 where masks share them, which reads them once.
    """
    places = jnp.concatenate([points.candidates, points.random], axis=-2)
    rows, own, count, _ = places.shape
    found = read(features, places.reshape(rows, own * count, 2)).reshape(rows, own, count, -1)
    if own == 1:
        wanted = read(jnp.moveaxis(truth, 1, -1), places[:, 0]).swapaxes(1, 2)
    else:
        each = truth.reshape(-1, *truth.shape[2:], 1)
        wanted = read(each, places.reshape(-1, count, 2)).reshape(*truth.shape[:2], count)
    return Samples(found.astype(features.dtype), wanted, points.candidates.shape[-2])


def read(
    maps: Float[Array, "B h w C"] | UInt8[Array, "B h w C"], points: Float[Array, "B P 2"]
) -> Float[Array, "B P C"]:
    """Bilinear values of maps at points (0 to 1), float32; beyond the border is 0.

    The centre of pixel i is at (i + 0.5) / size, so values fall by half towards the border itself. Source:
    official `point_sample` (grid_sample with align_corners False and zero padding).
    """
    rows, height, width, channels = maps.shape
    value = maps if jnp.issubdtype(maps.dtype, jnp.floating) else maps.astype(jnp.float32)
    # One head with one point on one level.
    value, places = value.reshape(rows, -1, 1, channels), points[:, :, None, None, None]
    return sample(value, ((height, width),), places, jnp.ones(places.shape[:-1], jnp.float32))


def undecided(logits: Float[Array, "*N C"], count: int) -> Bool[Array, "*N C"]:
    """True for the `count` logits closest to 0, of equal ones the first; no gradient.

    Halves the range of the largest of them until it is one number, 31 sums; a sort of thousands takes longer.
    """
    # The bits of floats that are not negative have the order of the floats.
    size = jax.lax.bitcast_convert_type(jnp.abs(jax.lax.stop_gradient(logits)), jnp.int32)

    def narrow(i, bound):
        higher = bound + (1 << (30 - i))
        return jnp.where((size < higher).sum(-1, keepdims=True) < count, higher, bound)

    largest = jax.lax.fori_loop(0, 31, narrow, jnp.zeros_like(size[..., :1]))
    below, equal = size < largest, size == largest
    return below | (equal & (jnp.cumsum(equal, axis=-1) <= count - below.sum(-1, keepdims=True)))
