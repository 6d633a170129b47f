# SPDX-License-Identifier: Apache-2.0
"""Picks what scores best in each row: places, and pairs of a query and a class."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vllm2_jax.nn.axes import on_each_device


def top(
    scores: Float[Array, "B *S n"], count: int
) -> tuple[Float[Array, "B *S {count}"], Int[Array, "B *S {count}"]]:
    """The `count` highest scores along the last axis, best first, and where they are; no gradient."""
    best = on_each_device(functools.partial(jax.lax.top_k, k=count), len(scores))
    return tuple(best(jax.lax.stop_gradient(scores)))


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
    scores, index = top(scores, min(count, scores.shape[-1]))
    return scores, index // classes, index % classes
