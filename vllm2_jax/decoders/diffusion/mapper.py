# SPDX-License-Identifier: Apache-2.0
"""From the hidden states of a super link to text states: a projection and a small transformer.

Source: official `emb_proj`, `llm2sd_mapper_queries` and `llm2sd_mapper` (a stock `nn.Transformer` with one
encoder and one decoder layer, pre-norm, with its final norms; no mask, no positions).
"""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.decoders.diffusion.config import MapperConfig
from vllm2_jax.nn.layers import ACTIVATIONS, LayerNorm, linear, param
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.nn.multihead import MultiHeadAttention

EPS = 1e-5  # of all norms


class Projection(nnx.Module):
    """Two layers from the language model's width to that of the text states."""

    def __init__(self, link_width: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = linear(link_width, width, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.last = linear(width, width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B Q L"]) -> Float[Array, "B Q W"]:
        """Linear, GELU, linear."""
        return self.last(checkpoint_name(ACTIVATIONS["gelu"](self.first(x)), "mlp_hidden"))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward over the projected link states."""

    def __init__(self, width: int, config: MapperConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (LayerNorm(width, eps=EPS, rngs=rngs) for _ in range(2))
        self.attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.mlp = MLP((width, config.mlp, width), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B Q W"]) -> Float[Array, "B Q W"]:
        """Each part is added to the residual stream."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        return x + self.mlp(self.norm2(x))


class DecoderLayer(nnx.Module):
    """Learned queries look at each other, then at the link."""

    def __init__(self, width: int, config: MapperConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width, eps=EPS, rngs=rngs) for _ in range(3))
        self.attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.cross = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.mlp = MLP((width, config.mlp, width), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T W"], memory: Float[Array, "B Q W"]) -> Float[Array, "B T W"]:
        """Each part is added to the residual stream."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        x = x + self.cross(self.norm2(x), memory, memory)
        return x + self.mlp(self.norm3(x))


class Mapper(nnx.Module):
    """Link states to as many text states as a caption has tokens."""

    def __init__(
        self,
        link_width: int,
        width: int,
        length: int,
        config: MapperConfig,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.project = Projection(link_width, width, dtype=dtype, rngs=rngs)
        self.queries = param(nnx.initializers.normal(1.0), rngs, (length, width), ("queries", "embed"))
        self.encoder = EncoderLayer(width, config, dtype=dtype, rngs=rngs)
        self.encoder_norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.decoder = DecoderLayer(width, config, dtype=dtype, rngs=rngs)
        self.decoder_norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.dtype = dtype

    def encode(self, projected: Float[Array, "B Q W"]) -> Float[Array, "B Q W"]:
        """What the queries look at."""
        return self.encoder_norm(self.encoder(projected))

    def decode(self, queries: Float[Array, "B T W"], memory: Float[Array, "B Q W"]) -> Float[Array, "B T W"]:
        """The queries after looking."""
        return self.decoder_norm(self.decoder(queries, memory))

    def __call__(self, states: Float[Array, "B Q L"]) -> Float[Array, "B T W"]:
        """Text states in float32."""
        memory = self.encode(self.project(states.astype(self.dtype)))
        queries = self.queries[...].astype(self.dtype)
        queries = jnp.broadcast_to(queries, (len(states), *queries.shape))
        return self.decode(queries, memory).astype(jnp.float32)
