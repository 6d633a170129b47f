# SPDX-License-Identifier: Apache-2.0
"""The autoencoder between pictures and latents: `AutoencoderKL` of Stable Diffusion."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.decoders.diffusion.blocks import Attention, ResnetBlock, upsample
from vllm2_jax.decoders.diffusion.config import VAEConfig
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import GroupNorm, conv3, linear
from vllm2_jax.nn.stack import rematted

EPS = 1e-6  # of all norms here, unlike in the UNet
LOGVAR = (-30.0, 20.0)  # the encoder's log variances are clipped to this


class Middle(nnx.Module):
    """Attention of one head between two residual blocks, at the smallest resolution."""

    def __init__(self, width: int, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        sizes: dict[str, Any] = {"groups": config.groups, "eps": EPS, "dtype": dtype, "rngs": rngs}
        self.first, self.last = ResnetBlock(width, width, **sizes), ResnetBlock(width, width, **sizes)
        self.norm = GroupNorm(width, groups=config.groups, eps=EPS, rngs=rngs)
        self.attention = Attention(width, 1, qkv_bias=True, impl=config.attention, dtype=dtype, rngs=rngs)

    def attend(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """What every cell finds in all cells, added to it."""
        return x + self.attention(self.norm(x).reshape(len(x), -1, x.shape[-1])).reshape(x.shape)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Residual block, attention, residual block."""
        return self.last(self.attend(self.first(x)))


class Level(nnx.Module):
    """Residual blocks of one resolution and the convolution to the next one, None at the last."""

    def __init__(
        self,
        width: int,
        width_out: int,
        depth: int,
        config: VAEConfig,
        *,
        resample: dict[str, Any] | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            [
                ResnetBlock(w, width_out, groups=config.groups, eps=EPS, dtype=dtype, rngs=rngs)
                for w in [width, *[width_out] * (depth - 1)]
            ]
        )
        self.resample = (
            None if resample is None else conv3(width_out, width_out, **resample, dtype=dtype, rngs=rngs)
        )
        self.remat = config.remat

    def blocks(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        """The residual blocks one after the other."""
        for block in self.resnets:
            x = constrain(
                rematted(lambda block, x: block(x), self.remat)(block, x), "batch", None, None, None
            )
        return x


class Encoder(nnx.Module):
    """Pictures to twice as many channels as latents have."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        widths, last = config.widths, len(config.widths) - 1
        # Halving a side pads it with one row or column of zeros, at the bottom and at the right.
        halve: dict[str, Any] = {"stride": 2, "border": (0, 1)}
        self.conv_in = conv3(3, widths[0], axes=(None, "conv_out"), dtype=dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.depth,
                    config,
                    resample=halve if i < last else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.middle = Middle(widths[-1], config, dtype=dtype, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], groups=config.groups, eps=EPS, rngs=rngs)
        self.conv_out = conv3(widths[-1], 2 * config.latent, axes=("conv_in", None), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w M"]:
        """Pixels in [-1, 1]; sides that are no multiple of the factor are rounded down."""
        x = self.conv_in(x)
        for level in self.levels:
            x = level.blocks(x)
            x = x if level.resample is None else level.resample(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        widths = config.widths[::-1]
        last = len(widths) - 1
        self.conv_in = conv3(config.latent, widths[0], axes=(None, "conv_out"), dtype=dtype, rngs=rngs)
        self.middle = Middle(widths[0], config, dtype=dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.depth + 1,
                    config,
                    resample={} if i < last else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.norm_out = GroupNorm(widths[-1], groups=config.groups, eps=EPS, rngs=rngs)
        self.conv_out = conv3(widths[-1], 3, axes=("conv_in", None), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w L"]) -> Float[Array, "B H W 3"]:
        """Pixels, about -1 to 1."""
        x = self.middle(self.conv_in(x))
        for level in self.levels:
            x = level.blocks(x)
            if level.resample is not None:
                x = level.resample(upsample(x, (2 * x.shape[1], 2 * x.shape[2])))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VAE(nnx.Module):
    """Pictures in [-1, 1] to moments of latents, and latents to pictures; nothing is scaled here."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        moments, latent = 2 * config.latent, config.latent
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.quant = linear(moments, moments, (None, None), dtype=dtype, rngs=rngs)
        self.post_quant = linear(latent, latent, (None, None), dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w M"]:
        """Moments in float32: means of the latents, then their clipped log variances, on the last axis."""
        moments = self.quant(self.encoder(pixels.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return jnp.concatenate([mean, jnp.clip(logvar, *LOGVAR)], axis=-1)

    def decode(self, latents: Float[Array, "B h w L"]) -> Float[Array, "B H W 3"]:
        """Pictures in float32, not clipped."""
        return self.decoder(self.post_quant(latents.astype(self.dtype))).astype(jnp.float32)


def draw_latents(moments: Float[Array, "B h w M"], noise: Float[Array, "B h w L"]) -> Float[Array, "B h w L"]:
    """Latents from the distribution that `VAE.encode` describes, `noise` being normal."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * logvar) * noise
