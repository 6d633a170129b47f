# SPDX-License-Identifier: Apache-2.0
"""Losses against their formulas in float64, and far out where the formulas overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.ops.losses import dice, sigmoid_bce, sigmoid_focal

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(0, 3, (4, 7)), jnp.float32)
SOFT = jnp.asarray(RNG.random((4, 7)), jnp.float32)
HARD = (SOFT > 0.5).astype(jnp.float32)
P = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))


def test_cross_entropy():
    for targets in (SOFT, HARD):
        want = -targets * np.log(P) - (1 - targets) * np.log(1 - P)
        np.testing.assert_allclose(sigmoid_bce(LOGITS, targets), want, rtol=1e-5, atol=1e-6)


def test_focal():
    right = np.where(HARD == 1, P, 1 - P)
    want = np.where(HARD == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    np.testing.assert_allclose(sigmoid_focal(LOGITS, HARD), want, rtol=1e-4, atol=1e-6)
    # Between 0 and 1 every factor is that of the target's mean.
    half = jnp.full_like(HARD, 0.5)
    want = 0.5 * 0.5**2 * -(np.log(P) + np.log(1 - P)) / 2
    np.testing.assert_allclose(sigmoid_focal(LOGITS, half), want, rtol=1e-4, atol=1e-6)


def test_dice_is_a_number_a_mask():
    want = 1 - (2 * (P * SOFT).sum(-1) + 1) / (P.sum(-1) + SOFT.sum(-1) + 1)
    ones = jnp.ones(SOFT.shape, bool)
    np.testing.assert_allclose(dice(LOGITS, SOFT, ones), want, rtol=1e-5)
    assert dice(jnp.full((2, 5), -30.0), jnp.zeros((2, 5)), jnp.ones((2, 5), bool)).tolist() == [0, 0]
    some = ones.at[:, 3:].set(False)
    np.testing.assert_allclose(dice(LOGITS, SOFT, some), dice(LOGITS[:, :3], SOFT[:, :3], ones[:, :3]))


def test_large_logits_and_low_precision():
    far = jnp.array([-1e4, 1e4, -1e4, 1e4])
    targets = jnp.array([0.0, 1.0, 1.0, 0.0])
    for loss in (sigmoid_bce, sigmoid_focal):
        value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x, targets).sum())(far)
        assert value > 1e3
        assert np.isfinite(gradient).all()
        assert loss(LOGITS.astype(jnp.bfloat16), HARD).dtype == jnp.float32
    everything = jnp.ones(SOFT.shape, bool)
    low = LOGITS.astype(jnp.bfloat16)
    for loss in (sigmoid_bce, sigmoid_focal, lambda x, y: dice(x, y, everything)):
        np.testing.assert_array_equal(loss(low, SOFT), loss(low.astype(jnp.float32), SOFT))
