# SPDX-License-Identifier: Apache-2.0
"""Convolutions, which on a CPU are products where maps are small and kernels wide."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Cells of a result up to which XLA's convolution on a CPU is the slower one, and its gradients are.
FEW, FEW_BACKWARD = 64, 256
# Numbers in a kernel from which on its shape is worth a thought; below it programs would only get longer.
WIDE = 2**18

Padding = tuple[tuple[int, int], ...]


def convolve(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "i j C D"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **settings: Any,
) -> Float[Array, "N H2 W2 D"]:
    """`jax.lax.conv_general_dilated` as `nnx.Conv` calls it, without dilation and groups.

    Compiled for a CPU, a result of few cells is a product of a wide kernel with patches, and of some more
    cells its gradients are.
    """
    shape = jax.eval_shape(functools.partial(_convolution, strides=strides, padding=padding), x, kernel).shape
    cells = shape[1] * shape[2]
    if cells > FEW_BACKWARD or kernel.size < WIDE:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    return _small(cells, tuple(strides), tuple(map(tuple, padding)), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _small(cells, strides, padding, x, kernel):
    """Keeps no patches for the backward pass, which are nine times the map."""
    if cells > FEW:
        return _convolution(x, kernel, strides, padding)
    return _by_platform(lambda convolved, *xs: convolved(*xs, strides, padding), x, kernel)


def _forward(cells, strides, padding, x, kernel):
    return _small(cells, strides, padding, x, kernel), (x, kernel)


def _backward(_, strides, padding, saved, gradient):
    def pulled(convolved, x, kernel, gradient):
        return jax.vjp(lambda x, kernel: convolved(x, kernel, strides, padding), x, kernel)[1](gradient)

    return _by_platform(pulled, *saved, gradient)


_small.defvjp(_forward, _backward)


def _by_platform(run, *arrays):
    ways = {"cpu": _product, "default": _convolution}
    return jax.lax.platform_dependent(*arrays, **{k: functools.partial(run, way) for k, way in ways.items()})


def _convolution(x, kernel, strides, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _product(x, kernel, strides: Sequence[int], padding: Padding):
    rows, columns, _, width = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high = (x.shape[1] - rows) // strides[0] + 1
    wide = (x.shape[2] - columns) // strides[1] + 1
    patches = [
        x[:, i : i + strides[0] * high : strides[0], j : j + strides[1] * wide : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.dot(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, width))
