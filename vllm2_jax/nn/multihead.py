# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention from one sequence to another, as in `torch.nn.MultiheadAttention`."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.layers import einsum


class MultiHeadAttention(nnx.Module):
    """Queries, keys and values of one width, each with its projection, and one out of the heads."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"the width {width} is not a multiple of its {heads} heads")
        shape, axes = (width, heads, width // heads), ("embed", "heads", "head_dim")

        def into_heads() -> nnx.Einsum:
            return einsum("btd,dhk->bthk", shape, axes, inputs=1, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = into_heads(), into_heads(), into_heads()
        self.out = einsum(
            "bthk,hkd->btd", (*shape[1:], width), (*axes[1:], "embed"), inputs=2, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        query: Float[Array, "B T W"],
        key: Float[Array, "B S W"],
        value: Float[Array, "B S W"],
        mask: Bool[Array, "B T S"] | Bool[Array, "B H T S"] | None = None,
    ) -> Float[Array, "B T W"]:
        """What every query finds.

        Args:
          query, key: with their positions already added.
          mask: True where a query may look, [B, T, S], or [B, H, T, S] to tell heads apart. A query that may
            look nowhere gets the mean of all values.
        """
        q, k, v = self.q(query), self.k(key), self.v(value)
        if mask is None or mask.ndim == 3:
            return self.out(attention(q, k, v, mask=mask))

        def heads_to_rows(x: Array) -> Array:
            return x.swapaxes(1, 2).reshape(-1, x.shape[1], 1, x.shape[3])

        out = attention(*map(heads_to_rows, (q, k, v)), mask=mask.reshape(-1, *mask.shape[2:]))
        return self.out(out.reshape(*q.shape[:1], q.shape[2], q.shape[1], q.shape[3]).swapaxes(1, 2))
