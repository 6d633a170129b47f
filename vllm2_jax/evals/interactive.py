# SPDX-License-Identifier: Apache-2.0
"""Segmentation from points, scribbles, boxes and masks: one true mask for each prompt (COCO-Interactive)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth, decode, mask_overlap

_EPS = 1e-6  # added to both parts of an IoU: two empty masks agree fully


def interactive(name: str = "interactive") -> Metric:
    """`mIoU` over the prompts of all pictures, `cIoU` of all their pixels together.

    Labels are the numbers of the prompts. The prediction for a prompt is its best-scoring mask; a prompt that
    got none is an empty mask. (The official code then takes the truth of the prompt before it.)
    """

    def summarise(records: Sequence[Float[np.ndarray, "_ 2"]]) -> dict[str, float]:
        shared, whole = np.concatenate(records).T
        if not len(shared):
            return {}
        return {
            f"{name}/mIoU": float(iou(shared, whole).mean()),
            f"{name}/cIoU": float(shared.sum() / whole.sum()) if whole.any() else 1.0,
        }

    return Metric(_record, summarise)


def iou(shared: Float[np.ndarray, "*n"], whole: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Intersection over union from numbers of pixels, as the official evaluation rounds it."""
    return (shared + _EPS) / (whole + _EPS)


def _record(found: Detections, truth: GroundTruth) -> Float[np.ndarray, "n 2"]:
    if found.masks is None or truth.masks is None:
        raise ValueError("interactive segmentation compares masks, and a prediction or its truth has none")
    rows = []
    for label, mask in zip(truth.labels, truth.masks, strict=True):
        true, mine = decode(mask), np.flatnonzero(found.labels == label)
        best = decode(found.masks[mine[np.argmax(found.scores[mine])]]) if len(mine) else np.zeros_like(true)
        rows.append(mask_overlap(best, true))
    return np.array(rows, np.float64).reshape(-1, 2)
