# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoder, as in `CLIPTextModel`: what the UNet was trained to listen to."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vllm2_jax.decoders.diffusion.config import TextConfig
from vllm2_jax.nn.layers import LayerNorm, param
from vllm2_jax.nn.stack import stack
from vllm2_jax.vision import vit
from vllm2_jax.vision.clip import Block


class CLIPText(nnx.Module):
    """Token ids to the states after the last norm. Padding is seen like any other token."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.tokens = param(init, rngs, (config.vocab, config.width), ("vocab", "embed"))
        self.positions = param(init, rngs, (config.length, config.width), (None, "embed"))

        def block(rngs: nnx.Rngs) -> Block:
            sizes, impl = (config.width, config.heads, config.mlp), config.attention
            return Block(*sizes, eps=config.eps, causal=True, impl=impl, dtype=dtype, rngs=rngs)

        self.blocks = stack(block, config.depth, rngs)
        self.norm = LayerNorm(config.width, eps=config.eps, rngs=rngs)
        self.config, self.dtype = config, dtype

    def hidden_states(
        self, ids: Int[Array, "B T"], layers: tuple[int, ...]
    ) -> tuple[Float[Array, "B T D"], ...]:
        """The asked entries of [embeddings, after block 1, ...], see `vit.hidden_states`.

        Raises:
          ValueError: longer texts than there are positions for.
        """
        if ids.shape[1] > self.config.length:
            raise ValueError(f"texts of {ids.shape[1]} tokens, positions for {self.config.length}")
        x = self.tokens[...][ids] + self.positions[...][: ids.shape[1]]
        # The encoder is frozen in every official stage: no backward pass, nothing to store.
        return vit.hidden_states(self.blocks, self.config.depth, x.astype(self.dtype), layers, remat="none")

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Text states in float32."""
        (last,) = self.hidden_states(ids, (-1,))
        return self.norm(last.astype(jnp.float32))
