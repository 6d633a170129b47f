# SPDX-License-Identifier: Apache-2.0
"""Scores of keypoints: average precision by object keypoint similarity, and PCK.

Spreads and protocols are those of the official evaluations (`datasets/evaluation/*_eval.py`), each dataset's
in its own entry below.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vllm2_jax.evals import coco
from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth

# COCO's spread of each keypoint around its truth, in parts of the root of the object's area, times 10: nose,
# then eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
_COCO = [0.26, *np.repeat([0.25, 0.35, 0.79, 0.72, 0.62, 1.07, 0.87, 0.89], 2)]
COCO_SIGMAS = np.array(_COCO) / 10
# Shoulders, elbows, wrists, hips, knees, ankles, head, neck.
CROWDPOSE_SIGMAS = np.repeat([0.79, 0.72, 0.62, 1.07, 0.87, 0.89, 0.79], 2) / 10
# The other datasets take COCO's spreads by position, whatever the points are, and the eyes' behind the 17th.
UNIKPT_SIGMAS = np.concatenate([COCO_SIGMAS, np.full(51, 0.025)])

# Bounds of CrowdPose's easy and medium pictures, by their crowd index.
_EASY, _MEDIUM = 0.2, 0.8


def crowdpose(name: str = "crowdpose") -> Metric:
    """CrowdPose: COCO's measure with its own spreads and 0.53 of the box for the area.

    `APeasy`, `APmedium` and `APhard` score the pictures of each crowdedness by themselves. (The official code
    computes those three from the detections of its last picture alone.)
    """

    def record(found: Detections, truth: GroundTruth) -> coco.Record:
        size = truth.boxes[:, 2:] - truth.boxes[:, :2]
        return found, dataclasses.replace(truth, area=0.53 * size.prod(axis=1))

    def summarise(records: Sequence[coco.Record]) -> dict[str, float]:
        def score(part: Sequence[coco.Record]) -> dict[str, float]:
            return coco.values(coco.evaluator(part, "keypoints", sigmas=CROWDPOSE_SIGMAS), name)

        scores = score(records)
        # No person of this dataset is small or large to COCO's measure: it has no areas.
        scores = {key: value for key, value in scores.items() if key[-1] not in "ml"}
        level = np.digitize([truth.crowd_index for _, truth in records], (_EASY, _MEDIUM))
        for number, title in enumerate(("easy", "medium", "hard")):
            part = [record for record, found in zip(records, level, strict=True) if found == number]
            if part and (value := score(part).get(f"{name}/AP")) is not None:
                scores[f"{name}/AP{title}"] = value
        return scores

    return Metric(record, summarise)


def unikpt(name: str = "unikpt") -> Metric:
    """AP-10K, Macaque and other sets of up to 68 keypoints: COCO's measure, spreads by position."""

    def summarise(records: Sequence[coco.Record]) -> dict[str, float]:
        points = max(0 if t.keypoints is None else t.keypoints.shape[1] for _, t in records)
        made = coco.evaluator(records, "keypoints", sigmas=UNIKPT_SIGMAS[:points])
        return coco.values(made, name)

    return Metric(lambda found, truth: (found, truth), summarise)


def pck(name: str = "pck", threshold: float = 0.2) -> Metric:
    """Share of visible keypoints that the best detection puts within `threshold` of the box's longer side.

    Each picture has one object (300W, Animal Kingdom, Vinegar Fly, Desert Locust). The value is the mean over
    keypoints of each one's share; keypoints that are never visible do not count. The record is, for every
    keypoint, its distance in units of the longer side, or NaN where it is not visible; a picture without any
    detection is infinitely far off.
    """

    def record(found: Detections, truth: GroundTruth) -> Float[np.ndarray, " P"]:
        if truth.keypoints is None or len(truth.keypoints) != 1:
            raise ValueError("PCK takes pictures with the keypoints of exactly one object")
        points, visible = truth.keypoints[0, :, :2], truth.keypoints[0, :, 2] > 0
        if found.keypoints is None or not len(found.scores):
            return np.where(visible, np.inf, np.nan)
        # Detections have room for the longest list, the truth only its own points.
        best = found.keypoints[np.argmax(found.scores), : len(points)]
        side = (truth.boxes[0, 2:] - truth.boxes[0, :2]).max()
        return distances(best[None], points[None], visible[None], np.array([side]))[0]

    def summarise(records: Sequence[Float[np.ndarray, " P"]]) -> dict[str, float]:
        shares = accuracies(np.stack(records), threshold)
        return {name: float(np.nanmean(shares))} if np.isfinite(shares).any() else {}

    return Metric(record, summarise)


def number(
    keypoints: Float[np.ndarray, "n P c"], ids: Sequence[int], count: int = len(UNIKPT_SIGMAS)
) -> Float[np.ndarray, "n {count} c"]:
    """Keypoints in the order of a prompt, put in the order of the dataset's own list.

    Args:
      keypoints: x, y and perhaps visibility.
      ids: number of each keypoint in the dataset's list.
      count: room in that list. What was not asked for is zero, which as a truth is not labelled.
    """
    numbered = np.zeros((len(keypoints), count, keypoints.shape[2]), keypoints.dtype)
    numbered[:, list(ids)] = keypoints[:, : len(ids)]
    return numbered


def distances(
    predicted: Float[np.ndarray, "N P 2"],
    true: Float[np.ndarray, "N P 2"],
    visible: Bool[np.ndarray, "N P"],
    side: Float[np.ndarray, " N"],
) -> Float[np.ndarray, "N P"]:
    """Distance of each keypoint from its truth in units of `side`; NaN where it is not visible."""
    away = np.linalg.norm((predicted - true) / side[:, None, None], axis=-1)
    return np.where(visible, away, np.nan)


def accuracies(away: Float[np.ndarray, "N P"], threshold: float) -> Float[np.ndarray, " P"]:
    """Share of each keypoint's distances below the threshold; NaN for keypoints never visible."""
    known = ~np.isnan(away)
    hits = (np.where(known, away, np.inf) < threshold).sum(axis=0)
    return np.where(known.any(axis=0), hits / np.maximum(known.sum(axis=0), 1), np.nan)
