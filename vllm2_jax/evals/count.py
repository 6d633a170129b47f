# SPDX-License-Identifier: Apache-2.0
"""Counting: how many objects a decoder finds, against how many there are."""

from collections.abc import Sequence

import numpy as np

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth


def count(name: str = "count", threshold: float = 0.5) -> Metric:
    """Mean absolute and root mean square error, and the share of exact counts, over pictures and classes.

    Counted are detections whose score is above the threshold; classes that neither side has do not count,
    pictures with nothing on either side count once, as exact. No
    official evaluation of counting was published.
    """

    def record(found: Detections, truth: GroundTruth) -> list[tuple[int, int]]:
        counted, there = found.labels[found.scores > threshold], truth.labels[~truth.crowds]
        kinds = np.union1d(counted, there)
        return [(int((counted == kind).sum()), int((there == kind).sum())) for kind in kinds]

    def summarise(records: Sequence[list[tuple[int, int]]]) -> dict[str, float]:
        pairs = np.array([pair for record in records for pair in record or [(0, 0)]], np.float64)
        error = pairs[:, 0] - pairs[:, 1]
        return {
            f"{name}/MAE": float(np.abs(error).mean()),
            f"{name}/RMSE": float(np.sqrt((error**2).mean())),
            f"{name}/exact": float((error == 0).mean()),
        }

    return Metric(record, summarise)
