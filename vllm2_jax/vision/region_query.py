# SPDX-License-Identifier: Apache-2.0
"""A learned query that looks at all cells of a map: the pooling `cross_attn` of the region encoder."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.layers import einsum, param

HEADS = 8  # fixed in the official class


class RegionQuery(nnx.Module):
    """One query, multi-head attention over cells (PyTorch's `MultiheadAttention`, all biases)."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        shape, axes = (width, HEADS, width // HEADS), ("embed", "heads", "head_dim")
        self.query = param(nnx.initializers.normal(1.0), rngs, (width,), ("embed",))
        self.q = einsum("btd,dhk->bthk", shape, axes, inputs=1, dtype=dtype, rngs=rngs)
        self.k = einsum("btd,dhk->bthk", shape, axes, inputs=1, dtype=dtype, rngs=rngs)
        self.v = einsum("btd,dhk->bthk", shape, axes, inputs=1, dtype=dtype, rngs=rngs)
        self.out = einsum(
            "bthk,hkd->btd", (*shape[1:], width), (*axes[1:], "embed"), inputs=2, dtype=dtype, rngs=rngs
        )

    def __call__(self, cells: Float[Array, "N P V"]) -> Float[Array, "N V"]:
        """What the query sees of each map."""
        query = jnp.broadcast_to(self.query[...].astype(cells.dtype), (len(cells), 1, cells.shape[-1]))
        return self.out(attention(self.q(query), self.k(cells), self.v(cells)))[:, 0]
