# SPDX-License-Identifier: Apache-2.0
"""One `attention()` for every sub-model: causal, segment and explicit masks, grouped heads.

Two implementations agree on all columns that are not padding: XLA's, which builds the matrix of all pairs of
columns, and `nn/splash.py`, which does not and is for long rows on a TPU.
"""

import jax
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
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = same if mask is None else mask & same
    # As fast as an einsum of our own on a CPU (104 against 114 ms, forward and backward, B=4 T=512 H=8 D=64).
    mask = None if mask is None else mask[:, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return checkpoint_name(out, "attention_out")
