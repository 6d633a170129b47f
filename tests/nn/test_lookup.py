# SPDX-License-Identifier: Apache-2.0
"""Rows of a table: the values, and gradients that are added up in the table's precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.nn.lookup import lookup

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_and_their_gradients(dtype):
    table, ids = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jnp.asarray([[0, 4, 4], [2, 0, 0]])
    np.testing.assert_array_equal(lookup(table, ids, dtype), table.astype(dtype)[ids])
    assert lookup(table, ids, dtype).dtype == dtype
    weights = jnp.asarray(RNG.normal(size=(2, 3, 3)), dtype)
    gradient = jax.grad(lambda table: (lookup(table, ids, dtype) * weights).astype(jnp.float32).sum())(table)
    want = np.zeros((5, 3), np.float32)
    np.add.at(want, np.asarray(ids), np.asarray(weights, np.float32))
    np.testing.assert_allclose(gradient, want, rtol=1e-6)


def test_a_frequent_row_loses_nothing():
    places = jnp.zeros(2000, jnp.int32)
    gradient = jax.grad(lambda table: lookup(table, places, jnp.bfloat16).astype(jnp.float32).sum())
    np.testing.assert_array_equal(gradient(jnp.ones((2, 1))), [[2000.0], [0.0]])
