# SPDX-License-Identifier: Apache-2.0
"""Convolutions with wide kernels: on a CPU their kernel gradients are products, on small maps all is."""

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
    cells its gradients are. The gradient of a wide kernel is a product for each of its taps at any size.
    """
    if kernel.size < WIDE:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    shape = jax.eval_shape(functools.partial(_convolution, strides=strides, padding=padding), x, kernel).shape
    return _wide(shape[1] * shape[2], tuple(strides), tuple(map(tuple, padding)), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _wide(cells, strides, padding, x, kernel):
    """Keeps no patches for the backward pass, which are nine times the map."""
    if cells > FEW:
        return _convolution(x, kernel, strides, padding)
    return _by_platform(lambda convolved, *xs: convolved(*xs, strides, padding), x, kernel)


def _forward(cells, strides, padding, x, kernel):
    return _wide(cells, strides, padding, x, kernel), (x, kernel)


def _backward(cells, strides, padding, saved, gradient):
    def pulled(convolved, x, kernel, gradient):
        return jax.vjp(lambda x, kernel: convolved(x, kernel, strides, padding), x, kernel)[1](gradient)

    def by_tap(x, kernel, gradient):
        d_x, _ = pulled(_convolution, x, kernel, gradient)
        rows = gradient.reshape(-1, gradient.shape[-1])
        taps = [jnp.dot(x.reshape(-1, x.shape[-1]).T, rows) for x in _taps(x, kernel, strides, padding)]
        return d_x, jnp.stack(taps).reshape(kernel.shape)

    if cells <= FEW_BACKWARD:
        return _by_platform(pulled, *saved, gradient)
    as_it_is = functools.partial(pulled, _convolution)
    return jax.lax.platform_dependent(*saved, gradient, cpu=by_tap, default=as_it_is)


_wide.defvjp(_forward, _backward)


def _by_platform(run, *arrays):
    ways = {"cpu": _product, "default": _convolution}
    return jax.lax.platform_dependent(*arrays, **{k: functools.partial(run, way) for k, way in ways.items()})


def _convolution(x, kernel, strides, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _product(x, kernel, strides: Sequence[int], padding: Padding):
    taps = _taps(x, kernel, strides, padding)
    return jnp.dot(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def _taps(x, kernel, strides: Sequence[int], padding: Padding):
    """What every tap of the kernel meets, `[N, H2, W2, C]` each."""
    rows, columns, *_ = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high = (x.shape[1] - rows) // strides[0] + 1
    wide = (x.shape[2] - columns) // strides[1] + 1
    return [
        x[:, i : i + strides[0] * high : strides[0], j : j + strides[1] * wide : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
