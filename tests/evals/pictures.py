# SPDX-License-Identifier: Apache-2.0
"""Pictures with random objects, and predictions as good as wanted."""

import dataclasses

import numpy as np

from vllm2_jax.evals.objects import Detections, GroundTruth, encode

SIZE = (60, 80)
CLASSES = ("dog", "person", "traffic light")


def truth(rng: np.random.Generator, count: int, *, classes: int = 2, points: int = 17) -> GroundTruth:
    """Boxes, filled boxes as masks, and visible keypoints inside; none overlap by a half."""
    corners = np.stack([np.arange(count) * 70 / max(count, 1), rng.uniform(0, 20, count)], axis=1).round()
    sides = rng.integers(6, 30, (count, 2)).astype(float)
    sides[:, 0] = np.minimum(sides[:, 0], 60 / max(count, 1)).round()
    boxes = np.concatenate([corners, corners + sides], axis=1)
    keypoints = np.concatenate(
        [
            corners[:, None] + rng.uniform(0, 1, (count, points, 2)) * sides[:, None],
            np.full((count, points, 1), 2.0),
        ],
        axis=2,
    )
    return GroundTruth(
        SIZE, boxes, np.array(CLASSES)[rng.integers(0, classes, count)], encode(fill(boxes)), keypoints
    )


def fill(boxes: np.ndarray) -> np.ndarray:
    """Masks of boxes with whole-numbered corners."""
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def perfect(true: GroundTruth) -> Detections:
    """Detections that equal the truth."""
    return Detections(
        boxes=true.boxes,
        labels=true.labels,
        scores=np.linspace(0.9, 0.6, len(true.labels)),
        masks=true.masks,
        keypoints=true.keypoints[..., :2],
    )


def moved(true: GroundTruth, by: float) -> Detections:
    """Detections that lie `by` pixels to the right."""
    boxes = true.boxes + np.array([by, 0, by, 0])
    return dataclasses.replace(
        perfect(true),
        boxes=boxes,
        masks=encode(fill(boxes)),
        keypoints=true.keypoints[..., :2] + np.array([by, 0]),
    )


def album(count: int = 6, points: int = 17) -> list[GroundTruth]:
    """Pictures with three, none, one ... objects."""
    rng = np.random.default_rng(0)
    return [truth(rng, (3, 0, 1, 4)[i % 4], points=points) for i in range(count)]
