# SPDX-License-Identifier: Apache-2.0
"""A learned query that looks at all cells of a map: the pooling `cross_attn` of the region encoder."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.layers import param
from vllm2_jax.nn.multihead import MultiHeadAttention

HEADS = 8  # fixed in the official class


class RegionQuery(MultiHeadAttention):
    """One query, and the attention with which it looks at cells."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.query = param(nnx.initializers.normal(1.0), rngs, (width,), ("embed",))
        super().__init__(width, HEADS, dtype=dtype, rngs=rngs)

    def pool(self, cells: Float[Array, "N P V"]) -> Float[Array, "N V"]:
        """What the query sees of each map."""
        query = jnp.broadcast_to(self.query[...].astype(cells.dtype), (len(cells), 1, cells.shape[-1]))
        return self(query, cells, cells)[:, 0]
