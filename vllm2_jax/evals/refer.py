# SPDX-License-Identifier: Apache-2.0
"""Scores of one object that a phrase refers to: RefCOCO, ReasonSeg.

One prediction and one true object a picture. `P@t` is the share of pictures whose IoU is above t, `mIoU` the
mean of the IoUs, `cIoU` the sum of all intersections over the sum of all unions (the official code calls it
oIoU); each for boxes and for masks (official `refcocoeval.py`).
"""

from collections.abc import Sequence

import numpy as np

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth, box_area, mask_overlap, overlap, union

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

# What is compared -> its intersection and union in pixels.
Record = dict[str, tuple[float, float]]


def refer(name: str = "refer") -> Metric:
    """The metric; masks are scored where both sides have them."""

    def summarise(records: Sequence[Record]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for what in records[0]:
            shared, whole = np.array([record[what] for record in records], np.float64).T
            # A picture without the object, in which nothing was found, is right.
            iou = np.divide(shared, whole, out=np.ones_like(shared), where=whole > 0)
            scores |= {f"{name}/{what}/P@{t}": float((iou > t).mean()) for t in THRESHOLDS}
            scores[f"{name}/{what}/mIoU"] = float(iou.mean())
            scores[f"{name}/{what}/cIoU"] = float(shared.sum() / whole.sum()) if whole.any() else 1.0
        return scores

    return Metric(_record, summarise)


def _record(found: Detections, truth: GroundTruth) -> Record:
    if len(truth.labels) > 1:
        raise ValueError(f"a phrase refers to one object, the truth has {len(truth.labels)}")
    best = slice(0, 1)
    record = {"box": _box_overlap(found.boxes[best], truth.boxes)}
    if found.masks is not None and truth.masks is not None:
        masks = (union(masks, truth.size) for masks in (found.masks[best], truth.masks))
        record["mask"] = mask_overlap(*masks)
    return record


def _box_overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    if not len(a) or not len(b):
        return 0.0, float(box_area(a).sum() + box_area(b).sum())
    shared, whole = overlap(a, b)
    return float(shared[0, 0]), float(whole[0, 0])
