# SPDX-License-Identifier: Apache-2.0
"""The best pairs of query and class; the official numbers are in tests/parity/metrics.py."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.ops.select import best_pairs


def test_best_pairs_by_sorting():
    logits = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    scores, queries, labels = jax.jit(best_pairs, static_argnums=1)(jnp.asarray(logits), 9)
    for b in range(3):
        order = np.argsort(-logits[b].ravel(), kind="stable")[:9]
        np.testing.assert_array_equal(queries[b], order // 4)
        np.testing.assert_array_equal(labels[b], order % 4)
        np.testing.assert_allclose(scores[b], 1 / (1 + np.exp(-logits[b].ravel()[order])), rtol=1e-6)


def test_equal_scores_and_classes_not_asked_for():
    logits = jnp.array([[[0.0, -jnp.inf], [0.0, -jnp.inf]]])
    scores, queries, labels = best_pairs(logits, 100)
    np.testing.assert_array_equal(scores, [[0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_array_equal(queries, [[0, 1, 0, 1]])
    np.testing.assert_array_equal(labels, [[0, 0, 1, 1]])


def test_scores_have_all_digits_and_no_gradient():
    logits = jnp.asarray([[[5.0, 5.03125], [5.0625, 4.9375]]], jnp.bfloat16)  # scores of 8 bits are all 0.992
    scores, queries, labels = best_pairs(logits, 4)
    np.testing.assert_allclose(
        scores[0], 1 / (1 + np.exp(-np.array([5.0625, 5.03125, 5, 4.9375]))), rtol=1e-6
    )
    assert (queries.tolist(), labels.tolist()) == ([[1, 0, 0, 1]], [[0, 1, 0, 1]])
    assert not jax.grad(lambda x: best_pairs(x, 4)[0].sum())(logits.astype(jnp.float32)).any()
