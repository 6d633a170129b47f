# SPDX-License-Identifier: Apache-2.0
"""What the pose decoder gets beside its links: a picture, and in training the objects in it.

Shares are those of the *picture*, not of the padded square it lies in. A row's links are its classes first,
its keypoints after: the last P places of the K links are keypoints, the T = K - P before them classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@struct.dataclass
class Picture:
    """What predictions are made from.

    Attributes:
      image: RGB at the top left of a square of zeros; floats are normalised already.
      size: height and width of the picture inside the square, pixels.
      keypoint_ids: for every keypoint place, the keypoint's number in its dataset's own list (0 to 67), which
        decides how exactly it has to be hit; anything where a row asks for fewer keypoints.
    """

    image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    size: Int[Array, "B 2"]
    keypoint_ids: Int[Array, "B P"]


@struct.dataclass
class Truth:
    """The objects of a picture, N places at most, the used ones first.

    Attributes:
      boxes: cx, cy, w, h in 0 to 1.
      labels: which class (place among the T) the object is.
      valid: the place holds an object.
      area: of the object, as a share of the picture's.
      keypoints: x, y in 0 to 1, in the order of the keypoint links.
      visibility: 0 not labelled, 1 hidden, 2 visible; hidden ones count as visible ones.
    """

    boxes: Float[Array, "B N 4"]
    labels: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    area: Float[Array, "B N"]
    keypoints: Float[Array, "B N P 2"]
    visibility: Int[Array, "B N P"]

    @property
    def visible(self) -> Bool[Array, "B N P"]:
        """Keypoints that count."""
        return (self.visibility > 0) & self.valid[..., None]

    @property
    def counts(self) -> Int[Array, " B"]:
        """Objects of every row."""
        return self.valid.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of a row: pixels of the square's side, places for objects and for keypoint links."""

    size: int
    objects: int
    keypoints: int

    def arrays(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What the collator makes of `rows` rows."""
        shapes = {
            "image": (jnp.uint8, self.size, self.size, 3),
            "size": (jnp.int32, 2),
            "keypoint_ids": (jnp.int32, self.keypoints),
            "boxes": (jnp.float32, self.objects, 4),
            "labels": (jnp.int32, self.objects),
            "valid": (jnp.bool_, self.objects),
            "area": (jnp.float32, self.objects),
            "keypoints": (jnp.float32, self.objects, self.keypoints, 2),
            "visibility": (jnp.int32, self.objects, self.keypoints),
        }
        return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (dtype, *shape) in shapes.items()}


def read_picture(arrays: Mapping[str, Any]) -> Picture:
    """The picture among the arrays that the collator made."""
    return Picture(**_pick(arrays, Picture))


def read_truth(arrays: Mapping[str, Any]) -> Truth:
    """The objects among the arrays that the collator made.

    Places without an object get area 1: what is computed there is thrown away, but must be a number.
    """
    found = _pick(arrays, Truth)
    return Truth(**found | {"area": jnp.where(found["valid"], found["area"], 1.0)})


def _pick(arrays: Mapping[str, Any], kind: type) -> dict[str, Any]:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"the targets of unipose lack {', '.join(missing)}; they have {', '.join(sorted(arrays))}: "
            "the collator of the decoder has to make them"
        )
    return {name: jnp.asarray(arrays[name]) for name in names}
