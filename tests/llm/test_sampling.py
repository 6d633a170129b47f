# SPDX-License-Identifier: Apache-2.0
"""Sampling: frequencies of many draws against the distribution they should follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.llm.sampling import nucleus, sample

PROBABILITY = np.array([0.05, 0.5, 0.15, 0.3])
LOGITS = jnp.asarray(np.log(PROBABILITY), jnp.float32)[None]


def frequencies(temperature, top_p, draws=4000):
    keys = jax.random.split(jax.random.key(0), draws)
    found = jax.vmap(lambda key: sample(LOGITS, key, float(temperature), float(top_p))[0])(keys)
    return np.bincount(np.asarray(found), minlength=4) / draws


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [(1, 1, [0, 1, 2, 3]), (2, 1, [0, 1, 2, 3]), (1, 0.79, [1, 3]), (1, 0.9, [1, 2, 3]), (1, 0.0, [1])],
)
def test_draws_follow_the_distribution(temperature, top_p, kept):
    want = np.zeros(4)
    want[kept] = PROBABILITY[kept] ** (1 / temperature)
    np.testing.assert_allclose(frequencies(temperature, top_p), want / want.sum(), atol=0.03)


def test_temperature_zero_takes_the_best_of_each_row():
    logits = jnp.array([[0.0, 3.0, 1.0], [5.0, -1.0, 4.9]])
    np.testing.assert_array_equal(jax.jit(sample)(logits, jax.random.key(0), 0.0, 0.5), [1, 0])


def test_nucleus_is_of_each_row():
    rows = jnp.concatenate([LOGITS, LOGITS[:, ::-1]])
    np.testing.assert_allclose(np.exp(nucleus(rows, 0.9))[:, 0], [0.15, 0.15], rtol=1e-5)
