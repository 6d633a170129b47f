# SPDX-License-Identifier: Apache-2.0
"""Norms that keep nothing but their input for the backward pass.

Computed in float32, returned in the dtype of their input. JAX's own gradients store float32 copies, which are
twice as large as a bfloat16 input, and read them several times.
Variances are not E[x^2] - E[x]^2, which loses the digits that parity needs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """The last axis with mean 0 and variance 1, times `scale` plus `bias`."""
    return _layer_forward(x, scale, bias, eps)[0]


def _layer_forward(x, scale, bias, eps):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
    y = (wide - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _layer_backward(eps, saved, gradient):
    x, scale, mean, inverse = saved
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normed).mean(-1, keepdims=True)
    d_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normed * along)
    rows = tuple(range(x.ndim - 1))
    sums = (gradient * normed).sum(rows), gradient.sum(rows)
    return d_x.astype(x.dtype), *(total.astype(scale.dtype) for total in sums)


layer_norm.defvjp(_layer_forward, _layer_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """The last axis with mean square 1, times `scale`."""
    return _rms_forward(x, scale, eps)[0]


def _rms_forward(x, scale, eps):
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (wide * inverse * scale).astype(x.dtype), (x, scale, inverse)


def _rms_backward(eps, saved, gradient):
    x, scale, inverse = saved
    gradient = gradient.astype(jnp.float32)
    normed = x.astype(jnp.float32) * inverse
    scaled = gradient * scale
    d_x = inverse * (scaled - normed * (scaled * normed).mean(-1, keepdims=True))
    total = (gradient * normed).sum(tuple(range(x.ndim - 1)))
    return d_x.astype(x.dtype), total.astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "N H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"], groups: int, eps: float
) -> Float[Array, "N H W C"]:
    """Feature maps with mean 0 and variance 1 in each group of channels, times `scale` plus `bias`.

    All sums are by channel: maps with groups apart have an axis of few channels, which a TPU pads.
    """
    return _group_forward(x, scale, bias, groups, eps)[0]


def _group_forward(x, scale, bias, groups, eps):
    wide = x.astype(jnp.float32)
    mean = _of_groups(wide.mean((1, 2)), groups)
    variance = _of_groups(jnp.square(wide - mean).mean((1, 2)), groups)
    inverse = jax.lax.rsqrt(variance + eps)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _group_backward(groups, eps, saved, gradient):
    x, scale, mean, inverse = saved
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    plain, along = gradient.sum((1, 2)), (gradient * normed).sum((1, 2))  # [N, C]
    cells = x.shape[1] * x.shape[2]
    shift, stretch = (_of_groups(scale * total / cells, groups) for total in (plain, along))
    d_x = inverse * (scale * gradient - shift - normed * stretch)
    return d_x.astype(x.dtype), *(total.sum(0).astype(scale.dtype) for total in (along, plain))


group_norm.defvjp(_group_forward, _group_backward)


def _of_groups(x: Float[Array, "N C"], groups: int) -> Float[Array, "N 1 1 C"]:
    """The mean over each group, for all of its channels."""
    rows, channels = x.shape
    means = x.reshape(rows, groups, -1).mean(-1)
    return jnp.repeat(means, channels // groups, axis=1)[:, None, None]
