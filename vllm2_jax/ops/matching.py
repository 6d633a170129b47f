# SPDX-License-Identifier: Apache-2.0
"""Bipartite matching of predictions to ground truth, and the costs that both detectors build it from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from optax.assignment import hungarian_algorithm

from vllm2_jax.nn.axes import on_each_device
from vllm2_jax.ops.losses import ALPHA, GAMMA

LARGEST = 1e5  # stands for a cost that is not a number; float32 still resolves 0.01 beside it


def match(cost: Float[Array, "B Q N"], valid: Bool[Array, "B N"]) -> Int[Array, "B N"]:
    """The query of every target, so that the cost summed over the valid targets is least.

    Each row's queries are all different. Places without a target get queries that no target wants: mask by
    `valid`. On a mesh this runs inside `shard_map` over the axes of "batch": under automatic sharding the
    algorithm's loops ask all devices in every turn whether to go on. Several sets of predictions: `jax.vmap`.

    Args:
      cost: Q queries, N <= Q places for targets; what is not finite counts as +-1e5. Has no gradient.
      valid: which places hold a target, in any order.

    Raises:
      ValueError: more places for targets than queries.
    """
    rows, queries, places = cost.shape
    if places > queries:
        raise ValueError(
            f"{places} targets for {queries} queries; lower the capacity of boxes or add queries"
        )
    cost = jnp.nan_to_num(cost.astype(jnp.float32), nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
    # Equal costs for every query do not change what is best for the others.
    cost = jax.lax.stop_gradient(jnp.where(valid[:, None], cost, 0.0))
    return on_each_device(jax.vmap(_assign), rows)(cost)


def class_cost(logits: Float[Array, "*B Q K"], labels: Int[Array, "*B N"]) -> Float[Array, "*B Q N"]:
    """What the focal loss would gain if a query's target were the class of each target.

    Saturates beyond logits of about +-15, as in the official matchers.
    """
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    positive = ALPHA * (1 - p) ** GAMMA * -jnp.log(p + 1e-8)
    negative = (1 - ALPHA) * p**GAMMA * -jnp.log(1 - p + 1e-8)
    return jnp.take_along_axis(positive - negative, labels[..., None, :], axis=-1)


def l1_cost(a: Float[Array, "*B Q D"], b: Float[Array, "*B N D"]) -> Float[Array, "*B Q N"]:
    """Sum of absolute differences of every pair (boxes as `cxcywh` in both detectors)."""
    return jnp.abs(a[..., :, None, :] - b[..., None, :, :]).sum(-1)


def _assign(cost: Float[Array, "Q N"]) -> Int[Array, " N"]:
    query, place = hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[1], jnp.int32).at[place].set(query.astype(jnp.int32))
