# SPDX-License-Identifier: Apache-2.0
"""Sine embeddings against loops over channels."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.nn.sine import sine, sine_2d, sine_boxes


def looped(x, channels, temperature):
    out = np.zeros((*np.shape(x), channels))
    for i in range(channels):
        angle = np.asarray(x, np.float64) * 2 * math.pi / temperature ** (2 * (i // 2) / channels)
        out[..., i] = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    return out


def test_numbers():
    x = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    np.testing.assert_allclose(sine(jnp.asarray(x), 10, temperature=20.0), looped(x, 10, 20.0), atol=2e-6)
    ids = jnp.array([0, 1, 7])
    np.testing.assert_allclose(sine(ids, 6), looped(ids, 6, 10_000.0), atol=1e-5)
    with pytest.raises(ValueError, match="even"):
        sine(ids, 5)


def test_boxes_put_y_before_x():
    boxes = np.random.default_rng(1).random((2, 5, 4)).astype(np.float32)
    want = np.concatenate([looped(boxes[..., i], 6, 10_000.0) for i in (1, 0, 2, 3)], axis=-1)
    np.testing.assert_allclose(sine_boxes(jnp.asarray(boxes), 6), want, atol=2e-6)
    np.testing.assert_allclose(sine_boxes(jnp.asarray(boxes[..., :2]), 6), want[..., :12], atol=2e-6)
    with pytest.raises(ValueError, match="have 3"):
        sine_boxes(jnp.ones((2, 3)), 6)


def test_padding_does_not_stretch_a_picture():
    valid = np.zeros((2, 5, 7), bool)
    valid[0], valid[1, :3, :4] = True, True
    got = sine_2d(jnp.asarray(valid), 8, temperature_h=20.0, temperature_w=30.0)
    whole = sine_2d(jnp.ones((1, 3, 4), bool), 8, temperature_h=20.0, temperature_w=30.0)
    np.testing.assert_allclose(got[1, :3, :4], whole[0], atol=1e-6)
    y, x = np.mgrid[1:6, 1:8]
    want = np.concatenate([looped(y / 5, 4, 20.0), looped(x / 7, 4, 30.0)], axis=-1)
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    assert np.isfinite(sine_2d(jnp.zeros((1, 2, 2), bool), 8)).all()
