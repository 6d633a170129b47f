# SPDX-License-Identifier: Apache-2.0
"""Rotary positions against their formula, written with complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.nn.rope import RopeConfig, rotate, rotation

HEAD = 6


def turned(x, positions, theta, factor=1.0):
    """x[i] + i x[i + half], times exp(i angle)."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    angle = (np.asarray(positions) / factor)[..., None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, :, None]
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, HEAD))


POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 19]])


def test_plain_and_linear(x):
    for config, factor in ((RopeConfig(theta=77.0), 1), (RopeConfig(77.0, "linear", 2.5), 2.5)):
        got = rotate(x, *rotation(config, POSITIONS, HEAD))
        np.testing.assert_allclose(got, turned(x, POSITIONS, 77.0, factor), atol=1e-5)


def test_dynamic_widens_the_base_of_long_rows_only(x):
    config = RopeConfig(theta=77.0, scaling="dynamic", factor=2.0, max_positions=10)
    got = rotate(x, *rotation(config, POSITIONS, HEAD))
    wide = 77.0 * (2.0 * 20 / 10 - 1) ** (HEAD / (HEAD - 2))  # the second row is 20 columns long
    np.testing.assert_allclose(got[:1], turned(x[:1], POSITIONS[:1], 77.0), atol=1e-5)
    np.testing.assert_allclose(got[1:], turned(x[1:], POSITIONS[1:], wide), atol=1e-5)
    told = rotate(x, *rotation(config, POSITIONS, HEAD, lengths=jnp.array([20, 20])))
    np.testing.assert_allclose(told, turned(x, POSITIONS, wide), atol=1e-5)


def test_dtype_of_the_input_is_kept_and_scaling_is_checked(x):
    half = rotate(x.astype(jnp.bfloat16), *rotation(RopeConfig(), POSITIONS, HEAD))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="'ntk'"):
        RopeConfig(scaling="ntk")
