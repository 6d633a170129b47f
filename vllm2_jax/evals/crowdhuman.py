# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman: average precision, log-average miss rate (mMR) and recall of people in crowds.

Caltech's matching: detections take their turn by score, each the free person it overlaps most by more than
half; one that fits none but lies by more than half inside an ignored region counts neither way.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth, box_area, overlap

_IOU = 0.5
# False positives a picture at which the miss rate is read.
_RATES = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])

# Rows (score, 1 for a hit or 0 for a false alarm) of the detections that count, and the number of people.
Record = tuple[Float[np.ndarray, "_ 2"], int]


def crowdhuman(name: str = "crowdhuman") -> Metric:
    """`AP`, `mMR` (lower is better) and `recall`; `GroundTruth.crowd` marks the ignored regions.

    AP is the area under the raw curve (trapezoids, no interpolation), which starts at recall 0 here; the
    official code starts it at the first detection, lower by one part in the number of people.
    """

    def summarise(records: Sequence[Record]) -> dict[str, float]:
        people = sum(count for _, count in records)
        if not people:
            return {}
        scores, hits = np.concatenate([rows for rows, _ in records]).T
        hits = hits[np.argsort(-scores, kind="stable")]
        if not len(hits):
            return {f"{name}/AP": 0.0, f"{name}/mMR": 1.0, f"{name}/recall": 0.0}
        right, wrong = np.cumsum(hits), np.cumsum(1 - hits)
        recall, precision = right / people, right / (right + wrong)
        area = np.trapezoid(np.insert(precision, 0, precision[0]), np.insert(recall, 0, 0.0))
        # The first point of the curve with so many false alarms; its end where there never are.
        at = np.minimum(np.searchsorted(wrong / len(records), _RATES), len(hits) - 1)
        with np.errstate(divide="ignore"):  # a miss rate of 0 makes the mean 0
            missed = np.exp(np.log(1 - recall[at]).mean())
        return {f"{name}/AP": float(area), f"{name}/mMR": float(missed), f"{name}/recall": float(recall[-1])}

    return Metric(_record, summarise)


def _record(found: Detections, truth: GroundTruth) -> Record:
    order = np.argsort(-found.scores, kind="stable")
    boxes, people, ignored = found.boxes[order], truth.boxes[~truth.crowds], truth.boxes[truth.crowds]
    shared, whole = overlap(boxes, people)
    iou = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    shared, own = overlap(boxes, ignored)[0], box_area(boxes)[:, None]
    inside = np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)
    free, rows = np.ones(len(people), bool), []
    for i, score in enumerate(found.scores[order]):
        candidates = np.where(free, iou[i], 0.0)
        if candidates.max(initial=0.0) > _IOU:
            free[candidates.argmax()] = False
            rows.append((score, 1.0))
        elif not inside[i].max(initial=0.0) > _IOU:
            rows.append((score, 0.0))
    return np.array(rows, np.float64).reshape(-1, 2), len(people)
