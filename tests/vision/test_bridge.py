# SPDX-License-Identifier: Apache-2.0
"""Bridges: shapes, precision, and what is refused. Values are compared in test_golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import randomized
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.bridge import Bridge, BridgeConfig, pixel_shuffle


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu", "internvl_mlp"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_tokens_and_widths(kind, shuffle):
    config = BridgeConfig(kind, shuffle, width_in=6, width_out=10)
    bridge = randomized(lambda: Bridge(config, dtype=jnp.bfloat16, rngs=Rngs(0)))
    out = bridge(jax.random.normal(jax.random.key(0), (2, 16, 6)))
    assert out.shape == (2, config.tokens_per_tile(16), 10) and out.dtype == jnp.bfloat16
    assert bridge.layers[0].kernel.shape[0] == (24 if shuffle else 6)


def test_pixel_shuffle_by_definition():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    out = pixel_shuffle(x)
    for r in range(4):
        for s in range(6):
            at = (2 * (r % 2) + s % 2) * 3
            np.testing.assert_array_equal(out[:, r // 2, s // 2, at : at + 3], x[:, r, s])


def test_grids_that_cannot_be_shuffled():
    with pytest.raises(ValueError, match="3 x 4 cannot be cut"):
        pixel_shuffle(jnp.zeros((1, 3, 4, 2)))
    config = BridgeConfig("linear", True, 4, 4)
    bridge = randomized(lambda: Bridge(config, dtype=jnp.float32, rngs=Rngs(0)))
    with pytest.raises(ValueError, match="square tiles, not 8 patches"):
        bridge(jnp.zeros((1, 8, 4)))


@pytest.mark.parametrize("kind", ["mlp", "mlp0x_gelu", "mlp2x_relu", "qformer"])
def test_unknown_kinds(kind):
    with pytest.raises(ValueError, match="is none of linear"):
        BridgeConfig(kind)
