# SPDX-License-Identifier: Apache-2.0
"""Dropping at random in training: single numbers, or a whole branch of single rows. No parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "*B"], rate: float, key: jax.Array | None) -> Float[Array, "*B"]:
    """Sets numbers to 0 with probability `rate` and enlarges the others; without a key, x as it is."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: Float[Array, "B *D"], rate: float, key: jax.Array | None) -> Float[Array, "B *D"]:
    """`dropout` of whole rows: what a residual branch adds to a row, or nothing."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (len(x), *[1] * (x.ndim - 1)))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def keys(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys out of one; as many None without one, which is evaluation."""
    return [None] * count if key is None else list(jax.random.split(key, count))
