# SPDX-License-Identifier: Apache-2.0
"""The layers every sub-model is built from: NNX layers with named axes and one precision policy.

Parameters are float32 (frozen ones may be stored in bfloat16), products run in `dtype`, norms in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.convolve import WIDE, convolve
from vllm2_jax.nn.norms import group_norm, layer_norm, rms_norm

Axes = tuple[str | None, ...]

NARROW = 8  # channels out of a convolution that a TPU computes faster as a product

LECUN_NORMAL = nnx.initializers.lecun_normal()

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def param(init: Callable, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A float32 parameter with named axes; `init(key, shape, dtype)` as in `jax.nn.initializers`."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


def linear(
    width_in: int,
    width_out: int,
    axes: Axes,
    *,
    bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    init: Callable = LECUN_NORMAL,
) -> nnx.Linear:
    """A dense layer; `axes` names the two axes of the kernel, the bias takes the second."""
    return nnx.Linear(
        width_in,
        width_out,
        use_bias=bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        dot_general=_dot_general,
        rngs=rngs,
    )


def einsum(
    equation: str,
    shape: tuple[int, ...],
    axes: Axes,
    *,
    inputs: int,
    bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    init: Callable | None = None,
    bias_init: Callable = nnx.initializers.zeros,
) -> nnx.Einsum:
    """A dense layer between several axes; into heads: `einsum("btd,dhk->bthk", (d, h, k), ..., inputs=1)`.

    Args:
      equation: the input, then the kernel.
      shape, axes: of the kernel; its first `inputs` axes are summed over, the others are those of the bias.
      init: of the kernel; None has variance 1 / (number summed over).
    """
    n = len(shape)
    lecun = nnx.initializers.lecun_normal(in_axis=range(inputs), out_axis=range(inputs, n))
    return Dense(
        equation,
        shape,
        shape[inputs:] if bias else None,
        inputs=inputs,
        gated=len(axes) - inputs > 1 and axes[inputs] is None,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init or lecun,
        bias_init=bias_init,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[inputs:]},
        rngs=rngs,
    )


def patch_conv(
    channels: int,
    width: int,
    patch: int,
    *,
    bias: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias_init: Callable = nnx.initializers.zeros,
    axes: Axes = (None, None, None, "embed"),
) -> nnx.Conv:
    """A convolution with stride = kernel size, `[N, H, W, channels] -> [N, H/patch, W/patch, width]`."""
    return nnx.Conv(
        channels,
        width,
        kernel_size=(patch, patch),
        strides=(patch, patch),
        padding="VALID",
        use_bias=bias,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[-1:]},
        rngs=rngs,
    )


def conv3(
    channels: int,
    width: int,
    *,
    stride: int = 1,
    border: tuple[int, int] = (1, 1),
    bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    init: Callable = LECUN_NORMAL,
    axes: Axes = ("conv_in", "conv_out"),
) -> nnx.Conv:
    """A 3x3 convolution, `[N, H, W, C] -> [N, ceil(H / stride), ..., width]` with a border of zeros.

    `border` counts the zeros before and after both sides, `axes` names the channels.
    """
    plain = stride == 1 and border == (1, 1)
    return (NarrowConv if plain and width <= NARROW else nnx.Conv)(
        channels,
        width,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=(border, border),
        use_bias=bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        conv_general_dilated=convolve,
        kernel_metadata={"axes": (None, None, *axes)},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )


class NarrowConv(nnx.Conv):
    """A 3x3 convolution into a few channels: one product with all nine taps, then nine shifted sums.

    The TPU compiler pads a few outputs to whole registers: six times the cycles. And with one picture a chip
    it spent over three minutes on the one in Stable Diffusion's autoencoder (docs/performance.md).
    """

    def __call__(self, inputs: Float[Array, "N H W C"]) -> Float[Array, "N H W D"]:
        _, height, width, _ = inputs.shape
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        taps = jnp.einsum("nhwc,ijcd->ijnhwd", x, kernel, preferred_element_type=jnp.float32)
        taps = jnp.pad(taps, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        parts = [taps[i, j, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        out = functools.reduce(jnp.add, parts)
        if self.bias is not None:
            out = out + self.bias[...].astype(jnp.float32)
        return out.astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group norm of feature maps, `[N, H, W, C]`, in float32, returned in the dtype of its input."""

    def __init__(self, width: int, *, groups: int = 32, eps: float, rngs: nnx.Rngs):
        if width % groups:
            raise ValueError(f"{width} channels do not make {groups} groups")
        self.scale = param(nnx.initializers.ones, rngs, (width,), ("conv_out",))
        self.bias = param(nnx.initializers.zeros, rngs, (width,), ("conv_out",))
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        return group_norm(x, self.scale[...], self.bias[...], self.groups, self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contract(
    x: Float[Array, "*x"], kernel: Float[Array, "*k"], axes: int, gated: bool = False
) -> Float[Array, "*y"]:
    """`jnp.tensordot(x, kernel, axes)` whose gradients are born in the layout of what they are gradients of.

    JAX's rule forms the transposed gradient of the kernel and turns it round. XLA on a CPU then transposes
    what is wide (the gradient of the output, once for each kernel) where this transposes what is narrow and
    shared (its input), and it transposes whatever has several axes to sum over: rows become one axis, and so
    do those of a wide kernel. On a mesh rows keep their axes, and the first output axis of a `gated` layer
    stays apart: any of them may be split over devices.

    Products of float32 are float32 everywhere: a TPU rounds their factors to bfloat16 where nothing is said.
    """
    return jnp.tensordot(x, kernel, axes, precision=_precision(x))


def _precision(x: Array) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _contract_forward(x, kernel, axes, gated):
    return contract(x, kernel, axes, gated), (x, kernel)


def _contract_backward(axes, gated, saved, gradient):
    x, kernel = saved
    precision = _precision(x)
    shape, split = x.shape, jax.sharding.get_abstract_mesh().size > 1
    if not split:
        x = x.reshape(-1, *kernel.shape[:axes])
        gradient = gradient.reshape(-1, *kernel.shape[axes:])
    rows = x.ndim - axes
    summed = tuple(range(rows))
    d_kernel = jax.lax.dot_general(x, gradient, ((summed, summed), ((), ())), precision=precision)

    def at_once(gradient, kernel):
        outs = tuple(range(rows, gradient.ndim)), tuple(range(axes, kernel.ndim))
        return jax.lax.dot_general(gradient, kernel, (outs, ((), ())), precision=precision)

    def as_matrices(gradient, kernel):
        if gated and split:
            parts = (jnp.moveaxis(gradient, rows, 0), jnp.moveaxis(kernel, axes, 0))
            return sum(as_matrix(*part) for part in zip(*parts, strict=True))
        return as_matrix(gradient, kernel)

    def as_matrix(gradient, kernel):
        matrix = kernel.reshape(math.prod(kernel.shape[:axes]), -1)
        wide = gradient.reshape(*x.shape[:rows], -1)
        return jnp.dot(wide, matrix.T, precision=precision).reshape(x.shape)

    if kernel.ndim == 2 or kernel.size < WIDE:
        d_x = at_once(gradient, kernel)
    else:
        d_x = jax.lax.platform_dependent(gradient, kernel, cpu=as_matrices, default=at_once)
    return d_x.reshape(shape), d_kernel


contract.defvjp(_contract_forward, _contract_backward)


def _dot_general(x, kernel, dimensions, **_: Any):
    """`contract` as `nnx.Linear` calls for a product."""
    assert dimensions == (((x.ndim - 1,), (0,)), ((), ()))
    return contract(x, kernel, 1)


class Dense(nnx.Einsum):
    """`nnx.Einsum` of an input and a kernel whose first axes are summed over, by `contract`."""

    def __init__(self, *args: Any, inputs: int, gated: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.inputs, self.gated = inputs, gated

    def __call__(self, inputs: Float[Array, "*x"], einsum_str: str | None = None) -> Float[Array, "*y"]:
        """The layer; its equation was given when it was made."""
        if einsum_str is not None:
            raise ValueError(f"{einsum_str}: the equation of this layer is {self.einsum_str}")
        kernel = self.kernel[...].astype(self.dtype)
        y = contract(inputs.astype(self.dtype), kernel, self.inputs, self.gated)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32, returned in the dtype of its input."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs, axis: str | None = "embed"):
        self.scale = param(nnx.initializers.ones, rngs, (width,), (axis,))
        self.bias = param(nnx.initializers.zeros, rngs, (width,), (axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32, returned in the dtype of its input."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs, axis: str | None = "embed"):
        self.scale = param(nnx.initializers.ones, rngs, (width,), (axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.scale[...], self.eps)
