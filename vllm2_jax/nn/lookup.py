# SPDX-License-Identifier: Apache-2.0
"""Rows of a table, as embeddings are: gradients are added up in the table's precision."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: Float[Array, "V D"], ids: Int[Array, "*B"], dtype: DTypeLike) -> Float[Array, "*B D"]:
    """Rows of a table in `dtype`.

    A row gets as many gradients as it has places in the batch, hundreds for a frequent token or a query of a
    link. JAX's rule adds them up in `dtype`, where bfloat16 forgets what is below half a unit of the sum's
    last place.
    """
    return table.astype(dtype)[ids]


def _forward(table, ids, dtype):
    return lookup(table, ids, dtype), (table, ids)


def _backward(dtype, saved, gradient):
    table, ids = saved
    return jnp.zeros_like(table).at[ids].add(gradient.astype(table.dtype)), None


lookup.defvjp(_forward, _backward)
