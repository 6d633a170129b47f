# SPDX-License-Identifier: Apache-2.0
"""Group norm against its formula in float64, and its gradients against differences of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.nn.group_norm import group_norm
from vllm2_jax.nn.layers import GroupNorm

EPS = 1e-5


def formula(x, scale, bias, groups):
    apart = np.asarray(x, np.float64).reshape(*x.shape[:3], groups, -1)
    axes = (1, 2, 4)
    normed = (apart - apart.mean(axes, keepdims=True)) / np.sqrt(apart.var(axes, keepdims=True) + EPS)
    return normed.reshape(x.shape) * scale + bias


def drawn(shape, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(size=shape) * 2 + 5, dtype) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=shape[-1]), jnp.float32) for _ in range(2))
    return x, scale, bias, gradient


@pytest.mark.parametrize("shape, groups", [((2, 3, 5, 12), 4), ((3, 1, 1, 8), 2), ((1, 4, 4, 6), 6)])
def test_is_the_formula_with_its_gradients(shape, groups):
    x, scale, bias, gradient = drawn(shape)
    found, pull = jax.vjp(lambda *xs: group_norm(*xs, groups, EPS), x, scale, bias)
    np.testing.assert_allclose(found, formula(x, scale, bias, groups), rtol=1e-4, atol=1e-5)
    given = [np.asarray(value, np.float64) for value in (x, scale, bias)]
    rng, step = np.random.default_rng(1), 1e-5
    for i, d in enumerate(pull(gradient)):
        direction = rng.normal(size=given[i].shape)
        ends = [[*given[:i], given[i] + sign * step * direction, *given[i + 1 :]] for sign in (1, -1)]
        slope = np.subtract(*(formula(*end, groups) for end in ends)) / (2 * step)
        want = (slope * np.asarray(gradient, np.float64)).sum()
        assert (np.asarray(d, np.float64) * direction).sum() == pytest.approx(want, rel=1e-3, abs=1e-3)


def test_layer_keeps_the_dtype_and_stores_its_input_alone():
    x, *_ = drawn((2, 8, 8, 32), jnp.bfloat16)
    norm = GroupNorm(32, groups=8, eps=EPS, rngs=nnx.Rngs(0))
    found, pull = jax.vjp(norm, x)
    assert found.dtype == pull(found)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), formula(x, 1, 0, 8), atol=0.03)
    stored = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in stored] == [jnp.bfloat16]
