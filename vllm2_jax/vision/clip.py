# SPDX-License-Identifier: Apache-2.0
"""CLIP's image encoder, as in `CLIPVisionModel`: the tower of the 7B model (ViT-L/14 at 336 pixels)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.layers import LayerNorm, param, patch_conv
from vllm2_jax.nn.stack import stack
from vllm2_jax.vision import vit


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes; the defaults are those of the released 7B model.

    Attributes:
      width, depth, heads, mlp: of the transformer.
      image_size: pixels of a side; tiles are square.
      patch: pixels of a patch's side.
      eps: of all layer norms.
      attention: implementation, see `nn.attention`.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    image_size: int = 336
    patch: int = 14
    eps: float = 1e-5
    attention: str = "xla"

    @property
    def tokens(self) -> int:
        """Patches of one tile, without the class token."""
        return (self.image_size // self.patch) ** 2


class Block(nnx.Module):
    """One pre-norm layer, of CLIP's image encoder and, `causal`, of its text encoder."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        *,
        eps: float,
        causal: bool = False,
        impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, eps=eps, rngs=rngs)
        self.attention = vit.Attention(width, heads, causal=causal, impl=impl, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=eps, rngs=rngs)
        self.mlp = vit.Mlp(width, mlp, "quick_gelu", dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "N T V"]) -> Float[Array, "N T V"]:
        """Attention, then feed-forward, each added to the residual stream."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CLIP(nnx.Module):
    """The tower: pixels to the hidden states of chosen layers."""

    def __init__(self, config: CLIPConfig, *, dtype: DTypeLike, remat: str = "none", rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.patches = patch_conv(3, config.width, config.patch, bias=False, dtype=dtype, rngs=rngs)
        self.class_token = param(init, rngs, (config.width,), ("embed",))
        self.positions = param(init, rngs, (1 + config.tokens, config.width), (None, "embed"))
        self.pre_norm = LayerNorm(config.width, eps=config.eps, rngs=rngs)

        def block(rngs: nnx.Rngs) -> Block:
            sizes, impl = (config.width, config.heads, config.mlp), config.attention
            return Block(*sizes, eps=config.eps, impl=impl, dtype=dtype, rngs=rngs)

        self.blocks = stack(block, config.depth, rngs)
        self.post_norm = LayerNorm(config.width, eps=config.eps, rngs=rngs)
        self.config, self.dtype, self.remat = config, dtype, remat

    def embed(self, pixels: Float[Array, "N S S 3"]) -> Float[Array, "N T V"]:
        """Class token and patches (row by row) with their positions, normed: entry 0 of the hidden states.

        Raises:
          ValueError: another image size than the one the position table was made for.
        """
        if pixels.shape[1] != self.config.image_size:
            raise ValueError(
                f"tiles of {pixels.shape[1]} pixels for a tower of {self.config.image_size}; "
                "resize the pictures or set the image size of the tower"
            )
        patches = self.patches(pixels).reshape(len(pixels), -1, self.config.width)
        first = jnp.broadcast_to(self.class_token[...], (len(pixels), 1, self.config.width))
        x = jnp.concatenate([first.astype(self.dtype), patches], axis=1)
        return self.pre_norm(x + self.positions[...].astype(self.dtype))

    def hidden_states(
        self, pixels: Float[Array, "N S S 3"], layers: tuple[int, ...]
    ) -> tuple[Float[Array, "N T V"], ...]:
        """The asked entries of Hugging Face's `hidden_states`, class token first.

        Args:
          pixels: normalised tiles.
          layers: 0 is what enters the first block, -1 what leaves the last; see `vit.hidden_states`.
        """
        x = self.embed(pixels)
        return vit.hidden_states(self.blocks, self.config.depth, x, layers, remat=self.remat)

    def pooled(self, last: Float[Array, "N T V"]) -> Float[Array, "N V"]:
        """The normed class token of the last hidden state. VisionLLM v2 never reads it; CLIP itself does."""
        return self.post_norm(last[:, 0])
