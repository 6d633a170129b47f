# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: mean IoU over classes, as mmsegmentation computes it."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from vllm2_jax.evals.metric import Metric

IGNORE = 255  # pixels without a class


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """A class for every pixel of a picture.

    Attributes:
      labels: class of each pixel, its place in `names`; in a truth, IGNORE where there is none.
      names: of the classes; pictures of one dataset may list them in different orders.
    """

    labels: Integer[np.ndarray, "H W"]
    names: Sequence[str]


def semantic(name: str = "semantic") -> Metric:
    """`mIoU`, the mean recall of classes (`mAcc`) and the share of right pixels (`aAcc`).

    Classes that neither the truth nor any prediction has do not count. The record holds, for each class, the
    pixels where both agree, those predicted and those true.
    """

    def summarise(records: Sequence[dict[str, tuple[int, int, int]]]) -> dict[str, float]:
        pixels: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3, np.int64))
        for record in records:
            for label, counts in record.items():
                pixels[label] += counts
        right, predicted, true = np.array(list(pixels.values()), np.int64).reshape(-1, 3).T
        either = predicted + true - right
        scores = {}
        if either.any():
            scores[f"{name}/mIoU"] = float((right[either > 0] / either[either > 0]).mean())
        if true.any():
            scores[f"{name}/mAcc"] = float((right[true > 0] / true[true > 0]).mean())
            scores[f"{name}/aAcc"] = float(right.sum() / true.sum())
        return scores

    return Metric(_record, summarise)


def _record(found: LabelMap, truth: LabelMap) -> dict[str, tuple[int, int, int]]:
    if list(found.names) != list(truth.names):
        raise ValueError(f"the predicted map has the classes {found.names}, the true one {truth.names}")
    if found.labels.shape != truth.labels.shape:
        raise ValueError(
            f"the predicted map is {found.labels.shape}, the true one {truth.labels.shape}: predictions have "
            "to be resized to the original picture"
        )
    known = truth.labels != IGNORE
    a, b = found.labels[known], truth.labels[known]
    count = len(truth.names)
    pixels = np.stack([np.bincount(x, minlength=count)[:count] for x in (a[a == b], a, b)], axis=1)
    return {name: tuple(row.tolist()) for name, row in zip(truth.names, pixels, strict=True) if row.any()}
