# SPDX-License-Identifier: Apache-2.0
"""Picks a decoder's best predictions, one for each pair of a query and a class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def best_pairs(
    logits: Float[Array, "B Q K"], count: int
) -> tuple[Float[Array, "B n"], Int[Array, "B n"], Int[Array, "B n"]]:
    """The pairs of query and class with the highest scores, best first.

    A query may come back under several classes; equal scores keep the order (query, class). No overlap is
    suppressed and no threshold applied, as in the official post-processing (`eval_det.py` 18-56).

    Args:
      logits: of Q queries and K classes; -inf for classes that were not asked for, which then score 0.
      count: pairs wanted; n is that or all Q * K there are.

    Returns:
      Scores (0 to 1), query of each pair, class of each pair.
    """
    classes = logits.shape[-1]
    scores = jax.nn.sigmoid(logits.astype(jnp.float32)).reshape(len(logits), -1)
    scores, index = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return scores, index // classes, index % classes
