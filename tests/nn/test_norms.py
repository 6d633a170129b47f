# SPDX-License-Identifier: Apache-2.0
"""Norms against their formulas in float64, and their gradients against differences of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.nn.layers import GroupNorm, LayerNorm, RMSNorm
from vllm2_jax.nn.norms import group_norm, layer_norm, rms_norm

EPS = 1e-5


def by_formula(x, axes):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPS)


def layer_formula(x, scale, bias):
    return by_formula(x, -1) * scale + bias


def rms_formula(x, scale):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + EPS) * scale


def group_formula(groups):
    def formula(x, scale, bias):
        apart = x.reshape(*x.shape[:3], groups, -1)
        return by_formula(apart, (1, 2, 4)).reshape(x.shape) * scale + bias

    return formula


def of_groups(groups):
    return lambda *xs: group_norm(*xs, groups, EPS)


def drawn(shape):
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(size=shape) * 2 + 5 for _ in range(2))
    return (x, *rng.normal(size=(2, shape[-1]))), gradient


@pytest.mark.parametrize(
    "norm, formula, shape, count",
    [
        (lambda *xs: layer_norm(*xs, EPS), layer_formula, (2, 3, 7), 3),
        (lambda *xs: layer_norm(*xs, EPS), layer_formula, (5,), 3),
        (lambda *xs: rms_norm(*xs, EPS), rms_formula, (2, 3, 7), 2),
        (of_groups(4), group_formula(4), (2, 3, 5, 12), 3),
        (of_groups(2), group_formula(2), (3, 1, 1, 8), 3),
        (of_groups(6), group_formula(6), (1, 4, 4, 6), 3),
    ],
)
def test_is_the_formula_with_its_gradients(norm, formula, shape, count):
    given, gradient = drawn(shape)
    given = given[:count]
    found, pull = jax.vjp(norm, *(jnp.asarray(x, jnp.float32) for x in given))
    np.testing.assert_allclose(found, formula(*given), rtol=1e-4, atol=1e-5)
    rng, step = np.random.default_rng(1), 1e-5
    for i, d in enumerate(pull(jnp.asarray(gradient, jnp.float32))):
        direction = rng.normal(size=given[i].shape)
        ends = [[*given[:i], given[i] + sign * step * direction, *given[i + 1 :]] for sign in (1, -1)]
        slope = np.subtract(*(formula(*end) for end in ends)) / (2 * step)
        want = (slope * gradient).sum()
        assert (np.asarray(d, np.float64) * direction).sum() == pytest.approx(want, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm, GroupNorm])
def test_layer_keeps_the_dtype_and_stores_its_input_alone(kind):
    x = jnp.asarray(drawn((2, 8, 8, 32))[0][0], jnp.bfloat16)
    graph, state = nnx.split(kind(32, eps=EPS, rngs=nnx.Rngs(0)))
    # Frozen parameters are stored in bfloat16.
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    found, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, pull(found)))} == {jnp.dtype(jnp.bfloat16)}
    stored = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in stored] == [jnp.bfloat16]
