# SPDX-License-Identifier: Apache-2.0
"""A convolution into few channels is the same as any other, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.nn.layers import NARROW, NarrowConv, conv3


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (1, 1, 3, 12)])
def test_narrow_convolution_is_a_convolution(shape):
    conv = conv3(shape[-1], 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert isinstance(conv, NarrowConv)
    x, weight = (
        jax.random.normal(jax.random.key(1), shape),
        jax.random.normal(jax.random.key(2), (*shape[:3], 4)),
    )
    kernel, bias = conv.kernel[...], jnp.arange(4.0)

    def ours(x, kernel, bias):
        graph, state = nnx.split(conv)
        state["kernel"], state["bias"] = (
            state[name].replace(value) for name, value in (("kernel", kernel), ("bias", bias))
        )
        return nnx.merge(graph, state)(x)

    def plain(x, kernel, bias):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + bias

    for found, wanted in zip(*(jax.vjp(f, x, kernel, bias) for f in (ours, plain)), strict=True):
        pairs = [(found, wanted)] if not callable(found) else zip(found(weight), wanted(weight), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_only_few_channels_without_stride_are_a_product():
    for options, kind in (({"width": NARROW + 1}, nnx.Conv), ({"width": 4, "stride": 2}, nnx.Conv)):
        assert type(conv3(3, **options, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))) is kind
    conv = conv3(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert conv(jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16
