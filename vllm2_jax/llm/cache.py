# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of one layer: one static shape, written in place."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vllm2_jax.nn.axes import constrain


@struct.dataclass
class KVCache:
    """Rotated keys, and values, of every column so far. Axes: B rows, K heads, S columns, D wide.

    Each layer has its own: in one array for all layers, every turn would copy a layer's part out of it before
    it can be multiplied. All rows write the same column at the same time; which columns of a row mean
    something is the caller's to know (`generate.State.valid`). Columns that nothing was written to are zeros.
    Heads stand before columns, as attention multiplies them: the other way round each turn would transpose
    the cache.
    """

    k: Float[Array, "B K S D"]
    v: Float[Array, "B K S D"]

    @classmethod
    def zeros(cls, rows: int, columns: int, heads: int, head_dim: int, dtype: DTypeLike) -> "KVCache":
        """An empty cache."""
        empty = jnp.zeros((rows, heads, columns, head_dim), dtype)
        empty = constrain(empty, "batch", "kv_heads", None, "head_dim")
        return cls(k=empty, v=empty)

    def write(
        self, column: int | Int[Array, ""], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"]
    ) -> "KVCache":
        """Writes T columns, from `column` on."""
        start = (0, 0, column, 0)
        return KVCache(
            k=jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype).swapaxes(1, 2), start),
            v=jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype).swapaxes(1, 2), start),
        )

    def read(self) -> tuple[Float[Array, "B S K D"], Float[Array, "B S K D"]]:
        """Keys and values of all columns."""
        return self.k.swapaxes(1, 2), self.v.swapaxes(1, 2)
