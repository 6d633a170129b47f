# SPDX-License-Identifier: Apache-2.0
"""The noise predictor: `UNet2DConditionModel` of Stable Diffusion 1.5 and of InstructPix2Pix.

    latents -- conv -- level 0 --------------------------------------- level 0 -- norm, conv -- noise
                          |   all outputs on the way down                 |
                       level 1 ---------------------------------------- level 1
                          |   are read on the way up, last one first      |
                          +----------------- middle ----------------------+

Maps are [B, H, W, C] throughout.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vllm2_jax.decoders.diffusion.blocks import ResnetBlock, SpatialTransformer, upsample
from vllm2_jax.decoders.diffusion.config import UNetConfig
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import GroupNorm, conv3, linear
from vllm2_jax.nn.stack import rematted

EPS = 1e-5  # of the group norms; those in front of transformers have 1e-6


def time_features(time: Float[Array, " B"] | Int[Array, " B"], width: int) -> Float[Array, "B W"]:
    """Cosines, then sines, of the time step at `width / 2` frequencies from 1 down to 1/10000; float32."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Two layers from time features to what every residual block is told."""

    def __init__(self, width: int, wide: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = linear(width, wide, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.out = linear(wide, wide, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "B W"]) -> Float[Array, "B T"]:
        """The embedded time step."""
        return self.out(jax.nn.silu(self.up(features)))


class Level(nnx.Module):
    """Residual blocks of one resolution, each followed by a transformer where the level attends.

    `widths` holds the channels into each block; `resample` is the convolution that leads to the next level:
    with stride 2 on the way down, after an upsampling on the way up, None at the last one.
    """

    def __init__(
        self,
        widths: list[int],
        width: int,
        config: UNetConfig,
        *,
        attends: bool,
        stride: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        sizes: dict[str, Any] = {"groups": config.groups, "dtype": dtype, "rngs": rngs}
        self.resnets = nnx.List([ResnetBlock(w, width, time=config.time, eps=EPS, **sizes) for w in widths])
        self.transformers = nnx.List(
            [
                SpatialTransformer(width, config.heads, config.context, impl=config.attention, **sizes)
                for _ in (widths if attends else [])
            ]
        )
        self.resample = conv3(width, width, stride=stride, dtype=dtype, rngs=rngs) if stride else None
        self.remat = config.remat

    def block(
        self,
        number: int,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B T"],
        context: Float[Array, "B S D"],
    ) -> Float[Array, "B H W C2"]:
        """Residual block `number` and its transformer."""
        x = rematted(lambda block, x, time: block(x, time), self.remat)(self.resnets[number], x, time)
        if len(self.transformers):
            transformer = self.transformers[number]
            x = rematted(lambda block, x, text: block(x, text), self.remat)(transformer, x, context)
        return constrain(x, "batch", None, None, None)


class UNet(nnx.Module):
    """Noisy latents, time step and text states to the noise in them."""

    def __init__(self, config: UNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        widths, depth = config.widths, config.depth
        last = len(widths) - 1
        common: dict[str, Any] = {"config": config, "dtype": dtype, "rngs": rngs}
        # The channels at both ends are too few to be split over anything.
        self.conv_in = conv3(config.channels, widths[0], axes=(None, "conv_out"), dtype=dtype, rngs=rngs)
        self.time = TimeEmbedding(widths[0], config.time, dtype=dtype, rngs=rngs)
        self.down = nnx.List(
            [
                Level(
                    [widths[max(i - 1, 0)], *[width] * (depth - 1)],
                    width,
                    attends=config.attends[i],
                    stride=2 if i < last else 0,
                    **common,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.middle = Level([widths[-1]], widths[-1], attends=True, **common)
        sizes: dict[str, Any] = {"groups": config.groups, "eps": EPS, "dtype": dtype, "rngs": rngs}
        self.middle_out = ResnetBlock(widths[-1], widths[-1], time=config.time, **sizes)
        skips = self._skips(config)
        ups, width = [], widths[-1]
        for i, width_out in reversed(list(enumerate(widths))):
            into = [width + skips.pop(), *[width_out + skips.pop() for _ in range(depth)]]
            ups.append(Level(into, width_out, attends=config.attends[i], stride=1 if i else 0, **common))
            width = width_out
        self.up = nnx.List(ups)
        self.norm_out = GroupNorm(widths[0], groups=config.groups, eps=EPS, rngs=rngs)
        self.conv_out = conv3(widths[0], config.channels_out, axes=("conv_in", None), dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    @staticmethod
    def _skips(config: UNetConfig) -> list[int]:
        """Channels of all outputs on the way down, in order."""
        found = [config.widths[0]]
        for i, width in enumerate(config.widths):
            found += [width] * (config.depth + (i < len(config.widths) - 1))
        return found

    def embed_time(self, time: Float[Array, " B"] | Int[Array, " B"]) -> Float[Array, "B T"]:
        """The embedded time step, before the SiLU in front of the residual blocks."""
        return self.time(time_features(time, self.config.widths[0]).astype(self.dtype))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"] | Int[Array, " B"],
        context: Float[Array, "B S D"],
    ) -> Float[Array, "B H W C2"]:
        """The predicted noise in float32.

        Args:
          x: noisy latents; for editing, the latents of the picture to edit behind them.
          time: 0 to 999, also between two steps.
          context: text states.
        """
        x, context = x.astype(self.dtype), context.astype(self.dtype)
        told = jax.nn.silu(self.embed_time(time))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            for number in range(len(level.resnets)):
                x = level.block(number, x, told, context)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = self.middle_out(self.middle.block(0, x, told, context), told)
        for level in self.up:
            for number in range(len(level.resnets)):
                x = level.block(number, jnp.concatenate([x, skips.pop()], axis=-1), told, context)
            if level.resample is not None:
                x = level.resample(upsample(x, skips[-1].shape[1:3]))
        return self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)
