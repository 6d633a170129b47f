# SPDX-License-Identifier: Apache-2.0
"""Objects of one picture: what a decoder found, and what is there. In pixels of the original picture."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pycocotools import mask as coco_mask

# COCO's compressed run lengths: {"size": [height, width], "counts": bytes}.
RunLengths = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a decoder found, best first.

    Attributes:
      boxes: left, top, right, bottom.
      labels: class of each object, its name as a rule; numbers do as well.
      scores: the higher the surer.
      masks: run lengths of each object; None where no masks are predicted.
      keypoints: x, y of P points; None where none are predicted.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Shaped[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    masks: Sequence[RunLengths] | None = None
    keypoints: Float[np.ndarray, "n P 2"] | None = None

    def first(self, count: int) -> "Detections":
        """The best ones."""
        masks = None if self.masks is None else self.masks[:count]
        keypoints = None if self.keypoints is None else self.keypoints[:count]
        return Detections(self.boxes[:count], self.labels[:count], self.scores[:count], masks, keypoints)

    def above(self, threshold: float) -> "Detections":
        """Those with a higher score."""
        return self.first(int((self.scores > threshold).sum()))


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What is in the picture.

    Attributes:
      size: height, width of the picture.
      boxes, labels, masks: as in `Detections`.
      keypoints: x, y and visibility: 0 not labelled, 1 hidden, 2 visible.
      area: pixels of each object, by which COCO tells small from large and scales distances between
        keypoints; None takes that of the mask, or else of the box.
      crowd: regions that are no single object; what is found there counts neither way.
      crowd_index: how crowded the picture is, 0 to 1 (CrowdPose).
    """

    size: tuple[int, int]
    boxes: Float[np.ndarray, "n 4"]
    labels: Shaped[np.ndarray, " n"]
    masks: Sequence[RunLengths] | None = None
    keypoints: Float[np.ndarray, "n P 3"] | None = None
    area: Float[np.ndarray, " n"] | None = None
    crowd: Bool[np.ndarray, " n"] | None = None
    crowd_index: float = 0.0

    @property
    def areas(self) -> Float[np.ndarray, " n"]:
        """`area`, or where it is not given that of the masks or boxes."""
        if self.area is not None:
            return self.area
        if self.masks is not None:
            return np.array([coco_mask.area(mask) for mask in self.masks], np.float64)
        return box_area(self.boxes)

    @property
    def crowds(self) -> Bool[np.ndarray, " n"]:
        """`crowd`, or nothing is."""
        return np.zeros(len(self.labels), bool) if self.crowd is None else self.crowd


def nothing(*, masks: bool = False, keypoints: int = 0) -> Detections:
    """Detections of a decoder that found nothing.

    Args:
      masks: whether it predicts masks.
      keypoints: how many keypoints it predicts; 0 for none.
    """
    return Detections(
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, str),
        scores=np.zeros(0),
        masks=[] if masks else None,
        keypoints=np.zeros((0, keypoints, 2)) if keypoints else None,
    )


def encode(masks: Bool[np.ndarray, "n H W"]) -> list[RunLengths]:
    """Run lengths of masks."""
    if not len(masks):
        return []
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def encode_segmentation(segmentation: list | dict, size: tuple[int, int]) -> RunLengths:
    """Run lengths of a COCO annotation (polygons or run lengths), drawn as pycocotools draws them.

    Args:
      size: height, width of the picture.
    """
    found = coco_mask.frPyObjects(segmentation, *size) if _plain(segmentation) else segmentation
    return coco_mask.merge(found) if isinstance(found, list) else found


def decode(mask: RunLengths) -> Bool[np.ndarray, "H W"]:
    """The pixels of a mask."""
    return coco_mask.decode(mask).astype(bool)


def union(masks: Sequence[RunLengths], size: tuple[int, int]) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
    """All pixels that any of the masks covers."""
    return decode(coco_mask.merge(list(masks))) if masks else np.zeros(size, bool)


def box_area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Width times height."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlap(
    a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Areas of intersection and union of every pair of boxes."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    return shared, box_area(a)[:, None] + box_area(b) - shared


def mask_overlap(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Pixels of the intersection and of the union of two masks."""
    return float((a & b).sum()), float((a | b).sum())


def _plain(segmentation: list | dict) -> bool:
    """Polygons and uncompressed run lengths; what is compressed already has a string of counts."""
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)
