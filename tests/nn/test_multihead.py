# SPDX-License-Identifier: Apache-2.0
"""Attention between sequences, checked by hand; dropping at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import randomized
from vllm2_jax.nn.dropout import drop_path, dropout
from vllm2_jax.nn.multihead import MultiHeadAttention
from vllm2_jax.nn.rngs import Rngs

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("per_head", [False, True])
def test_masked_attention_by_hand(per_head):
    rows, queries, keys, width, heads = 2, 3, 4, 6, 2
    module = randomized(lambda: MultiHeadAttention(width, heads, dtype=jnp.float32, rngs=Rngs(0)))
    query, key, value = (RNG.normal(size=(rows, n, width)).astype("f") for n in (queries, keys, keys))
    mask = RNG.random((rows, heads, queries, keys)) < 0.6
    mask[..., 0] = True
    if not per_head:
        mask[:] = mask[:, :1]
    got = module(*map(jnp.asarray, (query, key, value, mask if per_head else mask[:, 0])))

    def into(name, x):
        layer = getattr(module, name)
        return np.einsum("btd,dhk->bhtk", x, layer.kernel[...]) + np.asarray(layer.bias[...])[None, :, None]

    scores = np.einsum("bhtk,bhsk->bhts", into("q", query), into("k", key)) / np.sqrt(width // heads)
    weights = np.exp(np.where(mask, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bhsk,hkd->btd", weights, into("v", value), module.out.kernel[...])
    np.testing.assert_allclose(got, out + np.asarray(module.out.bias[...]), atol=1e-5)


def test_dropout_keeps_the_mean_and_does_nothing_without_a_key():
    x = jnp.ones((400, 50))
    assert dropout(x, 0.3, None) is x
    dropped = dropout(x, 0.3, jax.random.key(0))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
    assert abs(float(dropped.mean()) - 1) < 0.02
    rows = drop_path(x, 0.3, jax.random.key(1))
    assert (np.asarray(rows) == np.asarray(rows)[:, :1]).all()  # a row is dropped whole
    assert 0.2 < float((rows[:, 0] == 0).mean()) < 0.4
