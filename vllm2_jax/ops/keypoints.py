# SPDX-License-Identifier: Apache-2.0
"""Keypoints: how much two figures agree (object keypoint similarity), and their distance.

Points are (x, y) in shares of the picture's width and height, areas in shares of its area: distances are
stretched with the picture. COCO's evaluation measures in pixels, the official losses and costs do not.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Spread of each keypoint around its truth, in parts of the root of the object's area: COCO's 17 (nose, then
# eyes, ears, shoulders, elbows, wrists, hips, knees, ankles), then 51 times that of an eye. By place in the
# dataset's own list, whatever the points are called there. Source: official `OKSLoss` and `HungarianMatcher`.
_COCO = [0.26, *np.repeat([0.25, 0.35, 0.79, 0.72, 0.62, 1.07, 0.87, 0.89], 2)]
SIGMAS = np.concatenate([np.array(_COCO), np.full(51, 0.25)]).astype(np.float32) / 10


def oks(
    points: Float[Array, "*#B P 2"],
    truth: Float[Array, "*#B P 2"],
    visible: Bool[Array, "*#B P"],
    area: Float[Array, "*#B"],
    sigmas: Float[Array, "*#B P"],
) -> Float[Array, "*#B"]:
    """Mean over the visible keypoints of exp(-(distance / spread)^2 / 2), spread = 2 sigma root(area).

    All arguments broadcast, so one call serves pairs and tables of pairs. An object without a visible
    keypoint gets 1e-6, the least there is.
    """
    squared = jnp.square(points - truth).sum(-1)
    spread = jnp.square(2 * sigmas) * area[..., None]
    near = jnp.exp(-squared / (2 * spread)) * visible
    mean = near.sum(-1) / (visible.sum(-1) + 1e-6)
    return jnp.where(mean < 1e-6, 1e-6, mean)  # the whole gradient at the bound, as PyTorch's clamp


def visible_l1(
    points: Float[Array, "*#B P 2"], truth: Float[Array, "*#B P 2"], visible: Bool[Array, "*#B P"]
) -> Float[Array, "*#B"]:
    """Sum (not the mean) over the visible keypoints of |dx| + |dy|; broadcasts as `oks`."""
    return (jnp.abs(points - truth).sum(-1) * visible).sum(-1)
