# SPDX-License-Identifier: Apache-2.0
"""InternViT, the tower of the 26B model (InternViT-6B at 448 pixels)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.layers import RMSNorm, param, patch_conv
from vllm2_jax.nn.stack import stack
from vllm2_jax.vision import vit
from vllm2_jax.vision.positions import resize_positions


@dataclasses.dataclass(frozen=True)
class InternViTConfig:
    """Sizes; the defaults are those of InternViT-6B-448.

    Attributes:
      width, depth, heads, mlp: of the transformer.
      image_size: pixels of a side that the position table stands for; other sizes interpolate it.
      patch: pixels of a patch's side.
      eps: of all norms.
      qkv_bias: biases on queries, keys and values.
      qk_norm: norms of queries and keys.
      layer_scale: initial factor on what a layer adds.
      attention: implementation, see `nn.attention`.
    """

    width: int = 3200
    depth: int = 45
    heads: int = 25
    mlp: int = 12800
    image_size: int = 448
    patch: int = 14
    eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = True
    layer_scale: float = 0.1
    attention: str = "xla"

    @property
    def tokens(self) -> int:
        """Patches of one tile, without the class token."""
        return (self.image_size // self.patch) ** 2


class Block(nnx.Module):
    """One pre-norm layer whose additions are scaled per channel."""

    def __init__(self, config: InternViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        scale = nnx.initializers.constant(config.layer_scale)
        self.norm1 = RMSNorm(config.width, eps=config.eps, rngs=rngs)
        self.attention = vit.Attention(
            config.width,
            config.heads,
            qkv_bias=config.qkv_bias,
            qk_norm_eps=config.eps if config.qk_norm else None,
            impl=config.attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.scale1 = param(scale, rngs, (config.width,), ("embed",))
        self.norm2 = RMSNorm(config.width, eps=config.eps, rngs=rngs)
        self.mlp = vit.Mlp(config.width, config.mlp, "gelu", dtype=dtype, rngs=rngs)
        self.scale2 = param(scale, rngs, (config.width,), ("embed",))

    def __call__(self, x: Float[Array, "N T V"]) -> Float[Array, "N T V"]:
        """Attention, then feed-forward, each scaled and added to the residual stream."""
        x = x + self.attention(self.norm1(x)) * self.scale1[...].astype(x.dtype)
        return x + self.mlp(self.norm2(x)) * self.scale2[...].astype(x.dtype)


class InternViT(nnx.Module):
    """The tower: pixels to the hidden states of chosen layers. It has no norm before or after its blocks."""

    def __init__(self, config: InternViTConfig, *, dtype: DTypeLike, remat: str = "none", rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.patches = patch_conv(3, config.width, config.patch, bias=True, dtype=dtype, rngs=rngs)
        self.class_token = param(init, rngs, (config.width,), ("embed",))
        self.positions = param(init, rngs, (1 + config.tokens, config.width), (None, "embed"))
        self.blocks = stack(lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.config, self.dtype, self.remat = config, dtype, remat

    def embed(self, pixels: Float[Array, "N S S 3"]) -> Float[Array, "N T V"]:
        """Class token and patches (row by row) with their positions, resized to the grid of these tiles."""
        patches = self.patches(pixels)
        positions = resize_positions(self.positions[...], patches.shape[1]).astype(self.dtype)
        patches = patches.reshape(len(pixels), -1, self.config.width)
        first = jnp.broadcast_to(self.class_token[...], (len(pixels), 1, self.config.width))
        return jnp.concatenate([first.astype(self.dtype), patches], axis=1) + positions

    def hidden_states(
        self, pixels: Float[Array, "N S S 3"], layers: tuple[int, ...]
    ) -> tuple[Float[Array, "N T V"], ...]:
        """The asked entries of the official `hidden_states`, class token first.

        Args:
          pixels: normalised tiles.
          layers: 0 is what enters the first block, -1 what leaves the last; see `vit.hidden_states`.
        """
        x = self.embed(pixels)
        return vit.hidden_states(self.blocks, self.config.depth, x, layers, remat=self.remat)
