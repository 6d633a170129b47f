# SPDX-License-Identifier: Apache-2.0
"""Blocks of the UNet and of the autoencoder: residual convolutions and attention over the cells of a map."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.layers import GroupNorm, LayerNorm, conv3, einsum, linear


class ResnetBlock(nnx.Module):
    """Two convolutions beside a shortcut; `time` is the width of a time embedding, 0 in the autoencoder."""

    def __init__(
        self,
        width: int,
        width_out: int,
        *,
        time: int = 0,
        groups: int,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        channels = ("conv_in", "conv_out")
        self.norm1 = GroupNorm(width, groups=groups, eps=eps, rngs=rngs)
        self.conv1 = conv3(width, width_out, dtype=dtype, rngs=rngs)
        self.time = linear(time, width_out, channels, dtype=dtype, rngs=rngs) if time else None
        self.norm2 = GroupNorm(width_out, groups=groups, eps=eps, rngs=rngs)
        self.conv2 = conv3(width_out, width_out, dtype=dtype, rngs=rngs)
        unlike = width != width_out
        self.shortcut = linear(width, width_out, channels, dtype=dtype, rngs=rngs) if unlike else None

    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B H W C2"]:
        """`time` is the embedded time step after its SiLU, which all blocks share."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time is not None and time is not None:
            h = h + self.time(time)[:, None, None]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """Attention over cells or texts; `context` is the width of keys and values, if they come from a text."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int = 0,
        qkv_bias: bool = False,
        impl: str = "xla",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"the width {width} is not a multiple of its {heads} heads")
        dim = width // heads
        # A single head cannot be split, and saying so would only be reported as a misfit.
        axes = ("embed", "heads" if heads > 1 else None, "head_dim")

        def into_heads(source: int) -> nnx.Einsum:
            shape = (source, heads, dim)
            return einsum("btd,dhk->bthk", shape, axes, inputs=1, bias=qkv_bias, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = into_heads(width), into_heads(context or width), into_heads(context or width)
        self.out = einsum(
            "bthk,hkd->btd", (heads, dim, width), (*axes[1:], "embed"), inputs=2, dtype=dtype, rngs=rngs
        )
        self.impl = impl

    def __call__(
        self, x: Float[Array, "B T C"], context: Float[Array, "B S D"] | None = None
    ) -> Float[Array, "B T C"]:
        """What every cell finds in all cells, or in the text."""
        source = x if context is None else context
        return self.out(attention(self.q(x), self.k(source), self.v(source), impl=self.impl))


class FeedForward(nnx.Module):
    """GEGLU: the widened input times the GELU of a gate."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        wide = 4 * width
        self.up = einsum(
            "btd,dgf->btgf",
            (width, 2, wide),
            ("embed", None, "mlp"),
            inputs=1,
            dtype=dtype,
            rngs=rngs,
        )
        self.down = linear(wide, width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Widens four times, gates, narrows."""
        value, gate = jnp.moveaxis(self.up(x), 2, 0)
        return self.down(checkpoint_name(value * jax.nn.gelu(gate, approximate=False), "mlp_hidden"))


class TransformerBlock(nnx.Module):
    """Cells look at each other, then at the text."""

    def __init__(self, width: int, heads: int, context: int, *, impl: str, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width, eps=1e-5, rngs=rngs) for _ in range(3))
        self.attention = Attention(width, heads, impl=impl, dtype=dtype, rngs=rngs)
        # A text is short; the kernel that never holds all pairs would pad it to more than it is.
        self.cross = Attention(width, heads, context=context, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B S D"]) -> Float[Array, "B T C"]:
        """Self-attention, cross-attention and feed-forward, each added to the residual stream."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """A transformer block over the cells of a map, added to it."""

    def __init__(
        self,
        width: int,
        heads: int,
        context: int,
        *,
        groups: int,
        impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm = GroupNorm(width, groups=groups, eps=1e-6, rngs=rngs)
        self.proj_in = linear(width, width, ("conv_in", "conv_out"), dtype=dtype, rngs=rngs)
        self.block = TransformerBlock(width, heads, context, impl=impl, dtype=dtype, rngs=rngs)
        self.proj_out = linear(width, width, ("conv_in", "conv_out"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], context: Float[Array, "B S D"]) -> Float[Array, "B H W C"]:
        """Cells in row-major order are the tokens."""
        h = self.proj_in(self.norm(x)).reshape(len(x), -1, x.shape[-1])
        return x + self.proj_out(self.block(h, context)).reshape(x.shape)


def upsample(x: Float[Array, "B h w C"], size: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """Every cell four times; `size` (H, W) may be odd, then the last row or column goes.

    That equals the nearest-neighbour resize of the official code to the size of a skip connection, which is
    2h or 2h - 1.
    """
    batch, height, width, channels = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return doubled.reshape(batch, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]
