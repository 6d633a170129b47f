# SPDX-License-Identifier: Apache-2.0
"""A convolution with a wide kernel is the same as any other, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.nn.layers import conv3

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("shape", [(5, 8), (37, 40)])
@pytest.mark.parametrize("stride, border", [(1, (1, 1)), (2, (1, 1)), (2, (0, 1))])
def test_small_map_and_large_one(shape, stride, border):
    conv = conv3(344, 352, stride=stride, border=border, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)
    x = jax.random.normal(jax.random.key(1), (2, *shape, 344))

    def ours(x, state):
        return nnx.merge(graph, state)(x)

    def plain(x, state):
        kernel, bias = state["kernel"][...], state["bias"][...]
        padding = (border, border)
        found = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
        return found + bias

    (found, pull), (wanted, pull_plain) = (jax.vjp(f, x, state) for f in (ours, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    weight = jax.random.normal(jax.random.key(2), wanted.shape)
    for a, b in zip(*map(jax.tree.leaves, (pull(weight), pull_plain(weight))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "side, width, platform, forward, backward",
    [
        (4, 352, "cpu", True, True),
        (16, 352, "cpu", False, True),
        (32, 352, "cpu", False, False),
        (4, 16, "cpu", False, False),
        (4, 352, "tpu", False, False),
    ],
)
def test_only_wide_kernels_and_small_maps_on_a_cpu_make_products(side, width, platform, forward, backward):
    conv = conv3(width, width, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((1, side, side, width), jnp.float32)

    def convolutions(run) -> int:
        traced = jax.jit(run).trace(conv, x)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert convolutions(lambda conv, x: conv(x)) == (0 if forward else 1)
    # The result is linear: nothing of the forward pass is needed for this gradient.
    assert convolutions(jax.grad(lambda conv, x: conv(x).sum(), 1)) == (0 if backward else 1)


@pytest.mark.parametrize("side, products", [(4, 1), (32, 9)])
def test_gradient_of_a_wide_kernel_is_products(side, products):
    conv = conv3(352, 352, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, side, side, 352))
    program = jax.jit(jax.grad(lambda conv: conv(x).sum())).lower(conv).compile().as_text()
    assert "convolution(" not in program and program.count(" dot(") == products
