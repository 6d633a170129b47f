# SPDX-License-Identifier: Apache-2.0
"""Losses of single predictions, in float32. Summing, masking and weighing is left to the decoder."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Of the focal loss, in both official detectors: weight of targets 1 (targets 0 weigh the rest), and how much
# less than hard ones easy logits count.
ALPHA, GAMMA = 0.25, 2.0


def sigmoid_bce(logits: Float[Array, "*#B"], targets: Float[Array, "*#B"]) -> Float[Array, "*#B"]:
    """Binary cross entropy of each logit with a target from 0 to 1.

    Logits have to be finite: mask with a number like -1e4, not with -inf, whose product with 0 is NaN.
    """
    x = logits.astype(jnp.float32)
    return jnp.maximum(x, 0) - x * targets + jnp.log1p(jnp.exp(-jnp.abs(x)))


def sigmoid_focal(logits: Float[Array, "*#B"], targets: Float[Array, "*#B"]) -> Float[Array, "*#B"]:
    """Focal loss of each (finite) logit: cross entropy times (how wrong it is) ** GAMMA, weighed by ALPHA."""
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    right = p * targets + (1 - p) * (1 - targets)
    weight = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return weight * (1 - right) ** GAMMA * sigmoid_bce(logits, targets)


def dice(
    logits: Float[Array, "*B P"], targets: Float[Array, "*B P"], counted: Bool[Array, "*B P"]
) -> Float[Array, "*B"]:
    """1 - (2 |overlap| + 1) / (|prediction| + |target| + 1) over the counted points of each mask."""
    p = jax.nn.sigmoid(logits.astype(jnp.float32)) * counted
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + (targets * counted).sum(-1) + 1)
