# SPDX-License-Identifier: Apache-2.0
"""What CLIP and InternViT share: attention, feed-forward, and picking hidden states out of a scan."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import ACTIVATIONS, RMSNorm, einsum, linear
from vllm2_jax.nn.stack import run


class Attention(nnx.Module):
    """Self-attention over the tokens of a picture; the output projection always has a bias.

    `causal` lets a token see itself and those before it only, for CLIP's texts. `qk_norm_eps` adds
    InternViT's norms of queries and keys, over the full width before it is cut into heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm_eps: float | None = None,
        causal: bool = False,
        impl: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"the tower's width {width} is not a multiple of its {heads} heads")
        shape, axes = (width, heads, width // heads), ("embed", "heads", "head_dim")

        def into_heads() -> nnx.Einsum:
            return einsum("btd,dhk->bthk", shape, axes, inputs=1, bias=qkv_bias, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = into_heads(), into_heads(), into_heads()
        self.out = einsum(
            "bthk,hkd->btd", (*shape[1:], width), (*axes[1:], "embed"), inputs=2, dtype=dtype, rngs=rngs
        )

        def norm() -> RMSNorm | None:
            return RMSNorm(width, eps=qk_norm_eps, axis=None, rngs=rngs) if qk_norm_eps is not None else None

        self.q_norm, self.k_norm = norm(), norm()
        self.causal, self.impl = causal, impl

    def __call__(self, x: Float[Array, "N T V"]) -> Float[Array, "N T V"]:
        """Every token looks at all tokens of its picture, or at those of its text so far."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.reshape(x.shape)).reshape(q.shape)
            k = self.k_norm(k.reshape(x.shape)).reshape(k.shape)
        return self.out(attention(q, k, v, causal=self.causal, impl=self.impl))


class Mlp(nnx.Module):
    """The feed-forward layer; `activation` is a key of `nn.layers.ACTIVATIONS`."""

    def __init__(self, width: int, wide: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = linear(width, wide, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = linear(wide, width, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "N T V"]) -> Float[Array, "N T V"]:
        """Widens, bends and narrows again."""
        return self.down(checkpoint_name(ACTIVATIONS[self.activation](self.up(x)), "mlp_hidden"))


def hidden_states(
    blocks: Callable[[Array], Array],
    depth: int,
    x: Float[Array, "N T V"],
    layers: Sequence[int],
    *,
    remat: str,
) -> tuple[Float[Array, "N T V"], ...]:
    """The asked entries of [x, after block 1, ..., after block `depth`], in the asked order.

    Blocks after the last asked entry do not run, and only asked entries are ever in memory.

    Args:
      blocks: the stacked blocks, called with the residual stream.
      layers: indices into the `depth + 1` entries; negative ones count from the end.
      remat: a key of `nn.stack.REMAT`.

    Raises:
      ValueError: an index beyond the entries, or none at all.
    """
    outside = [i for i in layers if not -depth - 1 <= i <= depth]
    if outside or not layers:
        raise ValueError(
            f"layers {tuple(layers)} of a tower with {depth} blocks (config.model.vision.depth): "
            + (f"there are none {outside}" if outside else "none asked for")
        )
    entries = [i % (depth + 1) for i in layers]
    if not (inner := sorted(set(entries) - {0})):
        return tuple(x for _ in entries)
    last = inner[-1]
    # Each block writes to the place of the next asked entry, which is the last one to write there.
    place = np.searchsorted(inner, np.arange(1, last + 1))
    kept = jnp.zeros((len(inner), *x.shape), x.dtype)

    def body(carry, xs):
        x, kept = carry
        block, place = xs
        x = constrain(block(x), "batch", None, None)
        kept = constrain(jax.lax.dynamic_update_index_in_dim(kept, x, place, 0), None, "batch", None, None)
        return (x, kept), None

    used = blocks if last == depth else jax.tree.map(lambda p: p[:last], blocks)
    (_, kept), _ = run(body, (x, kept), (used, place), remat=remat)
    return tuple(kept[inner.index(i)] if i else x for i in entries)
