# SPDX-License-Identifier: Apache-2.0
"""Keys and values of all layers for decoding: one array each, written in place by the compiled loop."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vllm2_jax.nn.axes import constrain


@struct.dataclass
class KVCache:
    """Rotated keys, and values, of every column so far. Axes: N layers, B rows, S columns, K heads, D wide.

    All rows write the same column at the same time; which columns of a row mean something is the caller's to
    know (`generate.State.valid`). Columns that nothing was written to are zeros.
    """

    k: Float[Array, "N B S K D"]
    v: Float[Array, "N B S K D"]

    @classmethod
    def zeros(
        cls, layers: int, rows: int, columns: int, heads: int, head_dim: int, dtype: DTypeLike
    ) -> "KVCache":
        """An empty cache."""
        shape = (layers, rows, columns, heads, head_dim)
        empty = constrain(jnp.zeros(shape, dtype), "layers", "batch", None, "kv_heads", "head_dim")
        return cls(k=empty, v=empty)

    def fill(self, k: Float[Array, "N B T K D"], v: Float[Array, "N B T K D"]) -> "KVCache":
        """Writes all layers' first T columns: the prompt."""
        start = (0, 0, 0, 0, 0)
        return KVCache(
            k=jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), start),
            v=jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), start),
        )

    def write(
        self,
        layer: Int[Array, ""],
        column: Int[Array, ""],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
    ) -> "KVCache":
        """Writes T columns of one layer, from `column` on."""
        start = (layer, 0, column, 0, 0)
        return KVCache(
            k=jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype)[None], start),
            v=jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype)[None], start),
        )

    def layer(self, layer: Int[Array, ""]) -> tuple[Float[Array, "B S K D"], Float[Array, "B S K D"]]:
        """Keys and values of one layer."""
        return (
            jax.lax.dynamic_index_in_dim(self.k, layer, keepdims=False),
            jax.lax.dynamic_index_in_dim(self.v, layer, keepdims=False),
        )
