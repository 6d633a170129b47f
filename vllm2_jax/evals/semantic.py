# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: mean IoU over classes, as mmsegmentation computes it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

from vllm2_jax.evals.metric import Metric

IGNORE = 255  # pixels without a class


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """A class for every pixel of a picture.

    Attributes:
      labels: class of each pixel; in a truth, IGNORE where there is none.
      classes: how many classes the dataset has.
    """

    labels: Integer[np.ndarray, "H W"]
    classes: int


def semantic(name: str = "semantic") -> Metric:
    """`mIoU`, the mean recall of classes (`mAcc`) and the share of right pixels (`aAcc`).

    Classes that neither the truth nor any prediction has do not count. The record holds, for each class, the
    pixels where both agree, those predicted and those true.
    """

    def summarise(records: Sequence[Int[np.ndarray, "3 C"]]) -> dict[str, float]:
        right, predicted, true = np.sum(records, axis=0)
        either = predicted + true - right
        scores = {}
        if either.any():
            scores[f"{name}/mIoU"] = float((right[either > 0] / either[either > 0]).mean())
        if true.any():
            scores[f"{name}/mAcc"] = float((right[true > 0] / true[true > 0]).mean())
            scores[f"{name}/aAcc"] = float(right.sum() / true.sum())
        return scores

    return Metric(_record, summarise)


def _record(found: LabelMap, truth: LabelMap) -> Int[np.ndarray, "3 C"]:
    if found.labels.shape != truth.labels.shape:
        raise ValueError(
            f"the predicted map is {found.labels.shape}, the true one {truth.labels.shape}: predictions have "
            "to be resized to the original picture"
        )
    known = truth.labels != IGNORE
    a, b = found.labels[known], truth.labels[known]
    return np.stack(
        [np.bincount(x, minlength=truth.classes)[: truth.classes] for x in (a[a == b], a, b)]
    ).astype(np.int64)
