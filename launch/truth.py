# SPDX-License-Identifier: Apache-2.0
"""What is there in an example's picture, in the form that metrics of `vllm2_jax.evals` compare.

Datasets that are evaluated at the size of the original picture say so in `Example.meta["truth"]`:

  size             height, width of the original picture
  boxes            float [n, 4], left, top, right, bottom in its pixels
  labels           n names of classes
  segmentations    n polygons or run lengths as in COCO; None without masks
  keypoints        float [n, P, 3], x, y, visibility, in the dataset's own order; None without
  area             float [n], as the annotations give it; None without
  crowd            bool [n]; None without
  crowd_index      CrowdPose's measure of the picture; 0 without
  classes          int [H, W], index into `names` or 255; None without                (semantic segmentation)
  names            of all classes of the dataset                                     (semantic segmentation)

For the others the decoder's own targets are the truth, at the size of the decoder's picture.
"""

import numpy as np

from data_pipelines.example import Example
from vllm2_jax.evals.objects import GroundTruth, encode, encode_segmentation
from vllm2_jax.evals.pose import UNIKPT_SIGMAS, number
from vllm2_jax.evals.semantic import IGNORE, LabelMap


def picture_size(example: Example, decoder: str) -> tuple[int, int]:
    """Height and width of the picture that predictions are compared in."""
    if "truth" in example.meta:
        height, width = example.meta["truth"]["size"]
        return int(height), int(width)
    return example.targets[decoder]["image"].shape[:2]


def keypoint_ids(example: Example, decoder: str) -> list[int]:
    """The number of each keypoint link in the dataset's own list of keypoints."""
    count = len(example.meta["keypoints"])
    return [int(i) for i in example.targets[decoder].get("keypoint_ids", range(count))][:count]


def keypoint_names(example: Example, decoder: str) -> list[str]:
    """Names of all keypoints in the dataset's order, as far as the example knows them; others are empty."""
    names = [""] * len(UNIKPT_SIGMAS)
    for place, name in zip(keypoint_ids(example, decoder), example.meta["keypoints"], strict=True):
        names[place] = name
    return names


def objects_of(example: Example, decoder: str) -> GroundTruth:
    """The true objects, labelled with the names of their classes; keypoints in the dataset's order."""
    size, given = picture_size(example, decoder), example.meta.get("truth")
    if given is not None:
        segmentations = given.get("segmentations")
        return GroundTruth(
            size,
            np.asarray(given["boxes"], np.float64).reshape(-1, 4),
            np.array(given["labels"], str),
            None if segmentations is None else [encode_segmentation(s, size) for s in segmentations],
            given.get("keypoints"),
            given.get("area"),
            given.get("crowd"),
            float(given.get("crowd_index", 0.0)),
        )
    targets, (height, width) = example.targets[decoder], size
    names = np.array(example.meta["classes"], str)
    centre, half = targets["boxes"][:, :2], targets["boxes"][:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    keypoints = None
    if "keypoints" in targets:
        points = targets["keypoints"] * (width, height)
        points = np.concatenate([points, targets["visibility"][..., None]], axis=2)
        keypoints = number(points, keypoint_ids(example, decoder))
    return GroundTruth(
        size,
        corners * np.array([width, height, width, height], np.float64),
        names[np.asarray(targets["labels"], int)],
        encode(targets["masks"].astype(bool)) if "masks" in targets else None,
        keypoints,
        targets["area"] * float(height * width) if "area" in targets else None,
    )


def classes_of(example: Example, decoder: str) -> LabelMap:
    """The true class of every pixel: the mask of each class, and nothing known about the rest."""
    given = example.meta.get("truth")
    if given is not None:
        return LabelMap(given["classes"], tuple(given["names"]))
    targets = example.targets[decoder]
    labels = np.full(picture_size(example, decoder), IGNORE, np.int64)
    for mask, label in zip(targets["masks"], targets["labels"], strict=True):
        labels[mask.astype(bool)] = label
    return LabelMap(labels, tuple(example.meta["classes"]))
