# SPDX-License-Identifier: Apache-2.0
"""One `attention()` for every sub-model: causal, segment and explicit masks, grouped heads.

Two implementations agree on all columns that are not padding: XLA's, which builds the matrix of all pairs of
columns, and `nn/splash.py`, which does not and is for long rows on a TPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.nn.splash import splash

IMPLEMENTATIONS = ("xla", "splash")


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    causal: bool = False,
    segments: Int[Array, "B T"] | None = None,
    mask: Bool[Array, "B T S"] | None = None,
    impl: str = "xla",
) -> Float[Array, "B T H D"]:
    """Scaled dot-product attention, softmax in float32; the result is named "attention_out" for remat.

    Args:
      q, k, v: heads before the head width; `H` is a multiple of `K` (grouped queries).
      causal: a column sees itself and what stands before it (needs T == S).
      segments: columns see each other only where these numbers agree (needs T == S); 0 is padding by
        convention, its columns see each other.
      mask: True where a query may look. For decoding with a cache; only `impl="xla"` takes it. A query that
        may look nowhere gets the mean of all values, never NaN.
      impl: "xla" anywhere; "splash" is the TPU kernel that never builds the T x S matrix.

    Raises:
      ValueError: an unknown `impl`, a mask given to splash, `causal` or `segments` with T != S.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if q.shape[1] != k.shape[1] and (causal or segments is not None):
        raise ValueError(
            f"causal attention and segments need as many queries as keys, here {q.shape[1]} and "
            f"{k.shape[1]}; give an explicit mask"
        )
    if impl == "splash":
        if mask is not None:
            raise ValueError("splash attention takes no explicit mask; use impl='xla' to decode")
        return splash(q, k, v, causal=causal, segments=segments)
    rows, queries, heads, width = q.shape
    # Heads move to the front, once for all bands. Products then come out as the softmax wants them, where an
    # output in another order would transpose the scores, the largest array there is. The queries are scaled
    # and the sums divided, not the scores: two passes over T x S less.
    q = (q * width**-0.5).astype(q.dtype).reshape(rows, queries, k.shape[2], -1, width)
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2)
    bands = [
        _attend(
            q[:, :, :, start:stop],
            k[:, :, :seen],
            v[:, :, :seen],
            _mask(start, stop, seen, causal, segments, mask),
        )
        for start, stop, seen in _bands(queries, k.shape[2], causal)
    ]
    out = jnp.concatenate(bands, axis=3).transpose(0, 3, 1, 2, 4).reshape(rows, queries, heads, width)
    return checkpoint_name(out, "attention_out")


def _bands(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """Cuts the queries in up to 4 bands of 128 or more: first query, the one after the last, keys to look at.

    A causal band never touches the keys behind it: 4 bands leave out 3/8 of all pairs, more bands could save
    at most another 1/8.
    """
    size = -(-queries // max(1, min(4, queries // 128))) if causal else queries
    starts = range(0, queries, size)
    return [(i, min(i + size, queries), min(i + size, keys) if causal else keys) for i in starts]


def _mask(start, stop, seen, causal, segments, mask) -> Bool[Array, "#B t s"] | None:
    """Who may look where, for one band; None is everywhere."""
    parts = []
    if causal:
        parts.append((jnp.arange(start, stop)[:, None] >= jnp.arange(seen))[None])
    if segments is not None:
        parts.append(segments[:, start:stop, None] == segments[:, None, :seen])
    if mask is not None:
        parts.append(mask[:, start:stop, :seen])
    return functools.reduce(jnp.logical_and, parts) if parts else None


def _attend(
    q: Float[Array, "B K G t D"],
    k: Float[Array, "B K s D"],
    v: Float[Array, "B K s D"],
    mask: Bool[Array, "#B t s"] | None,
) -> Float[Array, "B K G t D"]:
    """One band of scaled queries; the G query heads of one key head stand below each other as one matrix."""
    groups = q.shape[2]
    stacked = q.reshape(*q.shape[:2], -1, q.shape[-1])
    scores = jnp.einsum("bktd,bksd->bkts", stacked, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # Finite, so that a query that may look nowhere weighs all values alike.
        scores = jnp.where(jnp.tile(mask, (1, groups, 1))[:, None], scores, jnp.finfo(jnp.float32).min)
    # The softmax is the same for any shift, so the shift needs no gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bkts,bksd->bktd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(q.dtype).reshape(q.shape)
