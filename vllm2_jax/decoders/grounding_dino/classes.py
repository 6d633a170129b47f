# SPDX-License-Identifier: Apache-2.0
"""The classes of a row: from link states to one vector each, who sees whom, and what they score.

Classes of a row see each other, and their order counts through a position, as in the official code.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.batch import Links
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.nn.mlp import MLP


class ClassEncoder(nnx.Module):
    """The queries of a link become one vector: a perceptron on each, then the mean (`patch2query`)."""

    def __init__(self, link_width: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.mlp = MLP((link_width, width, width, width), dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, links: Links) -> Float[Array, "B K W"]:
        """Places without a link get the vector of a link of zeros, as the official padding does."""
        states = jnp.where(links.valid[..., None, None], links.states, 0)
        return self.mlp(states.astype(self.dtype)).mean(axis=2)


def positions(valid: Bool[Array, "B K"]) -> Int[Array, "B K"]:
    """0, 1, 2, ... along the classes a row has, 0 elsewhere."""
    return jnp.where(valid, jnp.cumsum(valid, axis=1) - 1, 0)


def visible(valid: Bool[Array, "B K"]) -> Bool[Array, "B K K"]:
    """Classes see the classes of their row, empty places see themselves."""
    return (valid[:, :, None] & valid[:, None]) | jnp.eye(valid.shape[1], dtype=bool)


def tiled(mask: Bool[Array, "B K K"], heads: int) -> Bool[Array, "B H K K"]:
    """Head h of row b gets the mask of row (b * heads + h) mod B: the official error, right for one row.

    The official code repeats the batch `heads` times where attention reads each row's heads one after the
    other (`modeling_ov_grounding_dino_mask_dn.py` 837).
    """
    rows = len(mask)
    order = jnp.arange(rows * heads).reshape(rows, heads) % rows
    return mask[order]


def class_logits(
    x: Float[Array, "*S B N W"], classes: Float[Array, "B K W"], valid: Bool[Array, "B K"]
) -> Float[Array, "*S B N K"]:
    """Products of N vectors with the classes, in float32; `ABSENT` where a row has no class."""
    logits = jnp.einsum("...bnw,bkw->...bnk", x, classes, preferred_element_type=jnp.float32)
    return jnp.where(valid[:, None], logits, ABSENT)
