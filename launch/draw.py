# SPDX-License-Identifier: Apache-2.0
"""What a decoder found, or what is there, drawn on the picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipelines import draw
from vllm2_jax.evals.objects import Detections, GroundTruth, decode
from vllm2_jax.evals.semantic import LabelMap


def draw_objects(
    picture: UInt8[np.ndarray, "H W 3"],
    objects: Detections | GroundTruth,
    *,
    names: Sequence[str] = (),
    keypoints: Sequence[str] = (),
    threshold: float = 0.0,
) -> Image.Image:
    """Boxes with labels (and scores), masks and skeletons.

    Args:
      picture: the one that the objects' pixels belong to.
      objects: predicted or true; of predicted ones those whose score is above the threshold.
      names: classes in an order that is the same for several pictures, to give them equal colours.
      keypoints: names of the keypoints, of at least as many as the objects have.
      threshold: of the score.
    """
    scores = objects.scores if isinstance(objects, Detections) else None
    shown = range(len(objects.boxes)) if scores is None else np.flatnonzero(scores > threshold)
    order = [int(i) for i in reversed(shown)]  # the best end up on top
    labels = [str(label) for label in objects.labels]
    # With one class, colours tell objects apart; with several, classes.
    kinds = list(dict.fromkeys([*names, *sorted(labels)]))
    colours = [i if len(kinds) == 1 else kinds.index(label) for i, label in enumerate(labels)]
    page = Image.fromarray(picture)
    if objects.masks is not None:
        for i in order:
            page = draw.tint(page, decode(objects.masks[i]), draw.colour_of(colours[i]))
    thick = max(2, round(min(page.size) / 250))
    for i in order:
        said = labels[i] if scores is None else f"{labels[i]} {scores[i]:.2f}".strip()
        draw.box(page, objects.boxes[i], draw.colour_of(colours[i]), said, width=thick)
    if objects.keypoints is not None:
        for i in order:
            points, visibility = _points(objects.keypoints[i])
            draw.skeleton(page, points, visibility, keypoints[: len(points)], radius=1.5 * thick)
    return page


def draw_classes(picture: UInt8[np.ndarray, "H W 3"], classes: LabelMap) -> Image.Image:
    """Every pixel tinted in the colour of its class, with the names of the larger ones in place."""
    page = Image.fromarray(picture)
    for number in range(len(classes.names)):
        mask = classes.labels == number
        if mask.any():
            page = draw.tint(page, mask, draw.colour_of(number))
    for number, name in enumerate(classes.names):
        ys, xs = np.nonzero(classes.labels == number)
        if len(ys) > classes.labels.size / 200:
            draw.label(page, (float(np.median(xs)), float(np.median(ys))), draw.colour_of(number), name)
    return page


def _points(
    keypoints: Float[np.ndarray, "P 2"] | Float[np.ndarray, "P 3"],
) -> tuple[Float[np.ndarray, "P 2"], list[int]]:
    """Places and visibility; what a decoder predicts counts as visible."""
    if keypoints.shape[1] == 2:
        return keypoints, [2] * len(keypoints)
    return keypoints[:, :2], [int(v) for v in keypoints[:, 2]]
