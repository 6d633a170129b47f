# SPDX-License-Identifier: Apache-2.0
"""Group norm that keeps nothing but its input for the backward pass, and reads that once there."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "N H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"], groups: int, eps: float
) -> Float[Array, "N H W C"]:
    """Feature maps with mean 0 and variance 1 in each group of channels, times `scale` plus `bias`.

    Computed in float32, returned in the dtype of `x`. JAX's own gradient stores float32 maps, and maps with
    groups apart, whose few channels a TPU pads to whole registers; here all sums are by channel.
    """
    return _forward(x, scale, bias, groups, eps)[0]


def _forward(x, scale, bias, groups, eps):
    wide = x.astype(jnp.float32)
    mean = _of_groups(wide.mean((1, 2)), groups)
    # Not E[x^2] - E[x]^2, which loses the digits that parity needs.
    variance = _of_groups(jnp.square(wide - mean).mean((1, 2)), groups)
    inverse = jax.lax.rsqrt(variance + eps)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(groups, eps, saved, gradient):
    x, scale, mean, inverse = saved
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    plain, along = gradient.sum((1, 2)), (gradient * normed).sum((1, 2))  # [N, C]
    cells = x.shape[1] * x.shape[2]
    shift, stretch = (_of_groups(scale * total / cells, groups) for total in (plain, along))
    d_x = inverse * (scale * gradient - shift - normed * stretch)
    return d_x.astype(x.dtype), along.sum(0), plain.sum(0)


group_norm.defvjp(_forward, _backward)


def _of_groups(x: Float[Array, "N C"], groups: int) -> Float[Array, "N 1 1 C"]:
    """The mean over each group, for all of its channels."""
    rows, channels = x.shape
    means = x.reshape(rows, groups, -1).mean(-1)
    return jnp.repeat(means, channels // groups, axis=1)[:, None, None]
