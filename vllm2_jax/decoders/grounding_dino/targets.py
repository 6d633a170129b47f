# SPDX-License-Identifier: Apache-2.0
"""What the grounding decoder gets beside its links: a picture, and in training the objects in it.

Boxes are shares of the *picture*; masks cover the whole padded square that it lies in.
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
    """

    image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    size: Int[Array, "B 2"]


@struct.dataclass
class Truth:
    """The objects of a picture, N places at most, the used ones first.

    Attributes:
      boxes: cx, cy, w, h in 0 to 1.
      labels: which of the row's links the object belongs to.
      valid: the place holds an object.
      masks: 1 inside, over the square; at its size, or smaller to save memory (`Capacity.stride`): they are
        read between pixels, wherever a predicted mask is compared with them.
      mask_valid: the object has a mask; others train boxes and classes only.
    """

    boxes: Float[Array, "B N 4"]
    labels: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    masks: UInt8[Array, "B N h w"]
    mask_valid: Bool[Array, "B N"]

    @property
    def counts(self) -> Int[Array, " B"]:
        """Objects of every row."""
        return self.valid.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of a row.

    Attributes:
      size: side of the padded square, pixels; a multiple of 32.
      objects: places for objects, at most the decoder's queries.
      stride: pixels of the square for one of a mask. The official code has 1, where 100 objects in a square
        of 1,024 pixels are 105 MB a row.
    """

    size: int
    objects: int
    stride: int = 4

    def __post_init__(self):
        if self.size % 32 or self.size % self.stride:
            raise ValueError(f"size={self.size} has to be a multiple of 32 and of stride={self.stride}")

    def arrays(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What the collator makes of `rows` rows."""
        side = self.size // self.stride
        shapes = {
            "image": (jnp.uint8, self.size, self.size, 3),
            "size": (jnp.int32, 2),
            "boxes": (jnp.float32, self.objects, 4),
            "labels": (jnp.int32, self.objects),
            "valid": (jnp.bool_, self.objects),
            "masks": (jnp.uint8, self.objects, side, side),
            "mask_valid": (jnp.bool_, self.objects),
        }
        return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (dtype, *shape) in shapes.items()}


def read_picture(arrays: Mapping[str, Any]) -> Picture:
    """The picture among the arrays that the collator made."""
    return Picture(**_pick(arrays, Picture))


def read_truth(arrays: Mapping[str, Any]) -> Truth:
    """The objects among the arrays that the collator made."""
    found = _pick(arrays, Truth)
    return Truth(**found | {"mask_valid": found["mask_valid"] & found["valid"]})


def _pick(arrays: Mapping[str, Any], kind: type) -> dict[str, Any]:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"the targets of grounding_dino lack {', '.join(missing)}; they have "
            f"{', '.join(sorted(arrays))}: the collator of the decoder has to make them"
        )
    return {name: jnp.asarray(arrays[name]) for name in names}
