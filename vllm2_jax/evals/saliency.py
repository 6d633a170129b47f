# SPDX-License-Identifier: Apache-2.0
"""Salient and camouflaged objects: S-measure, weighted F-measure, mean E-measure and mean absolute error.

The prediction is one binary mask, as the official evaluation saves it (0 or 255 in a PNG); the formulas are
those of PySODMetrics, which it uses, for that case. Sources: Fan et al. 2017 (S), Margolin et al. 2014
(weighted F), Fan et al. 2018 (E).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth, union

_EPS = np.spacing(1)
_THRESHOLDS = 256  # of the E-measure's curve: 0 to 255
_FALLOFF = 5.0  # pixels from the object at which a false alarm's extra weight has halved
_KERNEL = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))  # smoothing of errors: 7 wide, sigma 5


def saliency(name: str = "saliency") -> Metric:
    """`S`, `wF`, `E` (mean of the curve) and `MAE`, each the mean over pictures.

    The best mask counts as the prediction, nothing found as an empty one; several true objects are one. Even
    a perfect mask has an E a little below 1 (0.997): at threshold 0 all of the picture is foreground. Where
    nothing is salient, wF is 0.
    """

    def summarise(records: Sequence[dict[str, float]]) -> dict[str, float]:
        return {f"{name}/{key}": float(np.mean([r[key] for r in records])) for key in records[0]}

    return Metric(_record, summarise)


def _record(found: Detections, truth: GroundTruth) -> dict[str, float]:
    if found.masks is None or truth.masks is None:
        raise ValueError("saliency compares masks, and a prediction or its truth has none")
    predicted, true = union(found.masks[:1], truth.size), union(truth.masks, truth.size)
    return {
        "S": s_measure(predicted, true),
        "wF": weighted_f(predicted, true),
        "E": e_measure(predicted, true),
        "MAE": float((predicted != true).mean()),
    }


def s_measure(predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"]) -> float:
    """Structural similarity, half of it of foreground and background, half of the picture's quarters."""
    share = true.mean()
    if share in (0.0, 1.0):
        return float((predicted == true).mean())
    objects = share * _object(predicted[true]) + (1 - share) * _object(~predicted[~true])
    return float(max(0.0, 0.5 * objects + 0.5 * _quarters(predicted, true)))


def _object(right: Bool[np.ndarray, " n"]) -> float:
    """How evenly and fully a prediction covers the pixels that it should."""
    mean = right.mean()
    spread = right.std(ddof=1) if right.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + _EPS)


def _quarters(predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"]) -> float:
    """Similarity of the four parts around the object's centre, weighted by their area."""
    # MATLAB's ranges include their end, hence the 1.
    y, x = np.argwhere(true).mean(axis=0).round().astype(int) + 1
    score = 0.0
    for rows in (slice(None, y), slice(y, None)):
        for columns in (slice(None, x), slice(x, None)):
            a, b = predicted[rows, columns], true[rows, columns]
            if a.size:
                score += _similarity(a.astype(float), b.astype(float)) * a.size / true.size
    return score


def _similarity(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    """Luminance, contrast and structure in one number."""
    x, y = a.mean(), b.mean()
    count = a.size - 1 + _EPS
    spread_a, spread_b = ((a - x) ** 2).sum() / count, ((b - y) ** 2).sum() / count
    above = 4 * x * y * ((a - x) * (b - y)).sum() / count
    below = (x**2 + y**2) * (spread_a + spread_b)
    if above != 0:
        return above / (below + _EPS)
    return 1.0 if below == 0 else 0.0


def weighted_f(predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"]) -> float:
    """F-measure (beta 1) with errors smoothed along the object and weighted by their distance from it."""
    if not true.any():
        return 0.0
    error = (predicted != true).astype(float)
    distance, (rows, columns) = ndimage.distance_transform_edt(~true, return_indices=True)
    # Outside, the error of the nearest pixel of the object takes part in the smoothing.
    smooth = np.where(true, error, error[rows, columns])
    for axis in (0, 1):
        smooth = ndimage.convolve1d(smooth, _KERNEL / _KERNEL.sum(), axis=axis, mode="constant")
    error = np.where(true & (smooth < error), smooth, error)
    error *= np.where(true, 1.0, 2 - 0.5 ** (distance / _FALLOFF))
    hits, alarms = true.sum() - error[true].sum(), error[~true].sum()
    recall, precision = 1 - error[true].mean(), hits / (hits + alarms + _EPS)
    return float(2 * recall * precision / (recall + precision + _EPS))


def e_measure(predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"]) -> float:
    """Mean enhanced alignment over all thresholds: 0 takes all pixels, each of the others the mask."""
    everything = np.ones_like(predicted)
    return ((_THRESHOLDS - 1) * _alignment(predicted, true) + _alignment(everything, true)) / _THRESHOLDS


def _alignment(predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"]) -> float:
    size = true.size - 1 + _EPS
    if not true.any() or true.all():
        return float((predicted == true).sum() / size)
    a, b = predicted - predicted.mean(), true - true.mean()
    alignment = 2 * a * b / (a**2 + b**2 + _EPS)
    return float(((alignment + 1) ** 2 / 4).sum() / size)
