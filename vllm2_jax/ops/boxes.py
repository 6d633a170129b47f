# SPDX-License-Identifier: Apache-2.0
"""Boxes: two formats, overlap measures, and the inverse sigmoid in which box heads add their corrections.

`cxcywh` is centre and size, `xyxy` two corners; the unit is the caller's, one for both boxes of a pair.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cxcywh_to_xyxy(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Centre and size to the corners (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Corners to centre and size; corners in the wrong order give a negative size."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(first + last) / 2, last - first], axis=-1)


def area(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Width times height of `xyxy` boxes; negative if one side is turned over."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def giou(a: Float[Array, "*B N 4"], b: Float[Array, "*B M 4"], *, eps: float = 0.0) -> Float[Array, "*B N M"]:
    """Generalised IoU of every pair of `xyxy` boxes, -1 to 1.

    Args:
      eps: added to both divisors, union and hull: 0 in Grounding DINO, 1e-6 in UniPose.
    """
    return paired_giou(a[..., :, None, :], b[..., None, :, :], eps=eps)


def paired_giou(
    a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"], *, eps: float = 0.0
) -> Float[Array, "*#B"]:
    """Generalised IoU of boxes at equal places (`xyxy`): IoU less the share of the hull that neither fills.

    Two boxes without any area give 0 and no gradient, where the official code gives NaN.
    """
    overlap, union = _iou(a, b, eps)
    hull = area(_corners(jnp.minimum(a, b), jnp.maximum(a, b)))
    return overlap - _ratio(hull - union, hull + eps)


def inverse_sigmoid(x: Float[Array, "*B"], eps: float) -> Float[Array, "*B"]:
    """log(x / (1 - x)) with x clamped to [0, 1] and both parts to at least `eps`.

    Args:
      eps: 1e-5 in Grounding DINO (logits within +-11.5), 1e-3 in UniPose (+-6.9).
    """
    # `where` passes the whole gradient at the bounds, as PyTorch does; minimum and maximum halve it there.
    x = jnp.where(x < 0, 0.0, jnp.where(x > 1, 1.0, x))
    rest = 1 - x
    return jnp.log(jnp.where(x < eps, eps, x) / jnp.where(rest < eps, eps, rest))


def _corners(first: Float[Array, "*B 4"], last: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """The upper left corner of one array and the lower right corner of another."""
    return jnp.concatenate([first[..., :2], last[..., 2:]], axis=-1)


def _iou(a, b, eps):
    inner = _corners(jnp.maximum(a, b), jnp.minimum(a, b))
    sides = jnp.maximum(inner[..., 2:] - inner[..., :2], 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - intersection
    return _ratio(intersection, union + eps), union


def _ratio(part: Float[Array, "*B"], whole: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """part / whole, 0 where the whole is 0; selected twice, so that the gradient is finite there too."""
    empty = whole == 0
    return jnp.where(empty, 0.0, part / jnp.where(empty, 1.0, whole))
