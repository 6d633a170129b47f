# SPDX-License-Identifier: Apache-2.0
"""Targets of the decoders that see, as arrays of static shape: a picture in a square, and its objects.

The picture keeps its aspect ratio: its longer side becomes that of the square (a picture whose targets have
`enlarge` False may stay smaller), it lies at the top left, and zeros fill the rest. Boxes, keypoints and
areas stay shares of the picture; masks are laid over the square. Names and shapes are those of
`Capacity.arrays` in each decoder's `targets.py`.

`TaskShape.capacities` of a task:

  size       side of the square, pixels; a multiple of 32
  objects    places for objects
  stride     pixels of the square for one of a mask, 4 if not given       (grounding_dino)
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipelines.errors import CapacityError, DataError

if TYPE_CHECKING:
    from data_pipelines.collate import TaskShape

Targets = Mapping[str, Any]
Arrays = dict[str, np.ndarray]

STRIDE = 4  # of masks, if a task does not say


def grounding_dino(targets: Targets | None, shape: "TaskShape") -> tuple[Arrays, int]:
    """Picture, boxes, labels and masks; objects may come without a mask (an array `masks` shorter than
    `boxes` is an error, none at all is not).

    Args:
      targets: of one example, as `synthetic.perception` describes them; None for a row of padding.
      shape: links and capacities of the task.

    Returns:
      The arrays, and how many objects were left out (never in training, where that raises).

    Raises:
      CapacityError: more objects than places, or objects of links that found no place.
      DataError: arrays that do not fit each other.
    """
    side, places = _capacity(shape, "size"), _capacity(shape, "objects")
    stride = shape.capacities.get("stride", STRIDE)
    arrays = _blank(side, places)
    arrays["masks"] = np.zeros((places, side // stride, side // stride), np.uint8)
    arrays["mask_valid"] = np.zeros(places, bool)
    if targets is None:
        return arrays, 0
    kept, dropped = _place_objects(arrays, targets, shape, classes=sum(shape.links.values()))
    if "masks" in targets:
        masks = np.asarray(targets["masks"], bool)[kept]
        for place, mask in enumerate(masks):
            cells = shrink(mask, *arrays["size"] / stride)
            arrays["masks"][place, : cells.shape[0], : cells.shape[1]] = cells
        arrays["mask_valid"][: len(masks)] = True
    return arrays, dropped


def unipose(targets: Targets | None, shape: "TaskShape") -> tuple[Arrays, int]:
    """Picture, boxes, labels, areas and keypoints.

    As `grounding_dino`, with `keypoints`, `visibility` and `keypoint_ids`: the number of each keypoint link
    in its dataset's list (0, 1, 2, ... if not given).
    """
    if list(shape.links)[-1:] != ["pose"]:
        raise DataError(
            f"a pose task's links end with its keypoints, this one has {dict(shape.links)}",
            remedy='write them as {"det": classes, "pose": keypoints}',
        )
    side, places, points = _capacity(shape, "size"), _capacity(shape, "objects"), shape.links["pose"]
    arrays = _blank(side, places)
    arrays["keypoint_ids"] = np.zeros(points, np.int32)
    arrays["area"] = np.zeros(places, np.float32)
    arrays["keypoints"] = np.zeros((places, points, 2), np.float32)
    arrays["visibility"] = np.zeros((places, points), np.int32)
    if targets is None:
        return arrays, 0
    kept, dropped = _place_objects(arrays, targets, shape, classes=sum(shape.links.values()) - points)
    arrays["area"][: len(kept)] = targets["area"][kept]
    given = targets["keypoints"].shape[1]
    if given > points and shape.strict:
        raise CapacityError(
            f"{given} keypoints where there is room for {points}",
            field="keypoints",
            remedy="raise links.pose",
        )
    ids = np.asarray(targets.get("keypoint_ids", np.arange(given)))[:points]
    arrays["keypoint_ids"][: len(ids)] = ids
    arrays["keypoints"][: len(kept), :given] = targets["keypoints"][kept, :points]
    arrays["visibility"][: len(kept), :given] = targets["visibility"][kept, :points]
    return arrays, dropped


def into_square(
    image: UInt8[np.ndarray, "h w 3"], side: int, *, enlarge: bool = True
) -> tuple[UInt8[np.ndarray, "{side} {side} 3"], tuple[int, int]]:
    """The picture at the top left of a square of zeros, and its height and width there."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if not enlarge:
        scale = min(scale, 1.0)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    square = np.zeros((side, side, 3), np.uint8)
    if size != (height, width):
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    square[: size[0], : size[1]] = image
    return square, size


def shrink(mask: Bool[np.ndarray, "h w"], height: float, width: float) -> UInt8[np.ndarray, "rows columns"]:
    """A mask in cells: a cell is inside if at least half of what it covers is.

    A mask that would vanish keeps the cell it covers most.

    Args:
      mask: in pixels.
      height, width: of the mask in cells, fractions too: the last cells then reach over its border, and
        nothing is inside there.

    Returns:
      The cells, as many as it takes to cover the mask.
    """
    rows, columns = math.ceil(height), math.ceil(width)
    bottom, right = mask.shape[0] * rows / height, mask.shape[1] * columns / width
    beyond = [(0, math.ceil(end) - side) for end, side in zip((bottom, right), mask.shape, strict=True)]
    picture = Image.fromarray(np.pad(mask, beyond).astype(np.uint8) * 255)
    share = np.asarray(picture.resize((columns, rows), Image.Resampling.BOX, box=(0, 0, right, bottom)))
    if mask.any() and share.max() < 128:
        return (share == share.max()).astype(np.uint8)
    return (share >= 128).astype(np.uint8)


def _capacity(shape: "TaskShape", name: str) -> int:
    if name not in shape.capacities:
        raise DataError(
            f"the task has no capacity {name!r}, only {dict(shape.capacities)}",
            field="capacities",
            remedy=f"add {name!r} to the task's `capacities`",
        )
    return shape.capacities[name]


def _blank(side: int, places: int) -> Arrays:
    return {
        "image": np.zeros((side, side, 3), np.uint8),
        "size": np.ones(2, np.int32),
        "boxes": np.zeros((places, 4), np.float32),
        "labels": np.zeros(places, np.int32),
        "valid": np.zeros(places, bool),
    }


def _place_objects(
    arrays: Arrays, targets: Targets, shape: "TaskShape", classes: int
) -> tuple[np.ndarray, int]:
    """Writes picture, boxes and labels; returns which objects found a place and how many did not."""
    arrays["image"], arrays["size"][:] = into_square(
        targets["image"], len(arrays["image"]), enlarge=targets.get("enlarge", True)
    )
    boxes, labels = np.asarray(targets["boxes"]), np.asarray(targets["labels"])
    for name in ("labels", "masks", "area", "keypoints", "visibility"):
        if name in targets and len(targets[name]) != len(boxes):
            raise DataError(
                f"{len(targets[name])} {name} for {len(boxes)} boxes", field=name, remedy="give one for each"
            )
    # Links that found no place are dropped in evaluation; their objects go with them.
    linked = np.flatnonzero(labels < classes)
    places = len(arrays["boxes"])
    if shape.strict and (len(linked) < len(boxes) or len(boxes) > places):
        raise CapacityError(
            f"{len(boxes)} objects of up to {labels.max(initial=-1) + 1} classes where there is room for "
            f"{places} of {classes}",
            field="boxes",
            remedy="raise the task's capacities.objects or its links",
        )
    kept = linked[:places]
    arrays["boxes"][: len(kept)], arrays["labels"][: len(kept)] = boxes[kept], labels[kept]
    arrays["valid"][: len(kept)] = True
    return kept, len(boxes) - len(kept)
