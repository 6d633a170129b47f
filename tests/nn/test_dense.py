# SPDX-License-Identifier: Apache-2.0
"""Dense layers are products, and between several axes einsums, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.nn.layers import einsum, linear


@pytest.mark.parametrize(
    "equation, source, shape, axes, inputs",
    [
        ("btd,dhk->bthk", (12,), (12, 4, 3), ("embed", "heads", "head_dim"), 1),
        ("btd,dhk->bthk", (1024,), (1024, 16, 64), ("embed", "heads", "head_dim"), 1),
        ("bthk,hkd->btd", (16, 64), (16, 64, 1024), ("heads", "head_dim", "embed"), 2),
        ("btd,dgf->btgf", (512,), (512, 2, 1024), ("embed", None, "mlp"), 1),
        ("btd,dhlpc->bthlpc", (1024,), (1024, 16, 4, 8, 2), ("embed", "heads", None, None, None), 1),
    ],
)
def test_is_an_einsum(equation, source, shape, axes, inputs):
    layer = einsum(equation, shape, axes, inputs=inputs, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    state["bias"] = state["bias"].replace(jax.random.normal(jax.random.key(3), state["bias"].shape))
    x = jax.random.normal(jax.random.key(1), (2, 5, *source))

    def ours(x, state):
        return nnx.merge(graph, state)(x)

    def plain(x, state):
        return jnp.einsum(equation, x, state["kernel"][...]) + state["bias"][...]

    (found, pull), (wanted, pull_plain) = (jax.vjp(f, x, state) for f in (ours, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    weight = jax.random.normal(jax.random.key(2), wanted.shape)
    for a, b in zip(*map(jax.tree.leaves, (pull(weight), pull_plain(weight))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [(), (7,), (2, 5), (0, 3)])
def test_linear_is_a_product(rows):
    graph, state = nnx.split(linear(12, 20, ("embed", "mlp"), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    state["bias"] = state["bias"].replace(jnp.arange(20.0))
    x = jax.random.normal(jax.random.key(1), (*rows, 12))
    found, pull = jax.vjp(lambda x, state: nnx.merge(graph, state)(x), x, state)
    np.testing.assert_allclose(found, x @ state["kernel"][...] + jnp.arange(20.0), rtol=1e-5, atol=1e-5)
    weight = jax.random.normal(jax.random.key(2), found.shape)
    d_x, d_state = pull(weight)
    flat, of_rows = np.asarray(x).reshape(-1, 12), np.asarray(weight).reshape(-1, 20)
    np.testing.assert_allclose(d_x, weight @ state["kernel"][...].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_state["kernel"][...], flat.T @ of_rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_state["bias"][...], of_rows.sum(0), rtol=1e-4, atol=1e-5)
