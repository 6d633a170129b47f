# SPDX-License-Identifier: Apache-2.0
"""Prediction heads: corrections of references, in float32.

One head serves all layers. The same box head moves the references from layer to layer (from a query before
the decoder's norm) and makes the prediction (from it after the norm); the same point head also places the
keypoints at the start (from their embedding). Source: official `UniPose.forward` and `TransformerDecoder`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vllm2_jax.nn.mlp import MLP
from vllm2_jax.ops.boxes import inverse_sigmoid

EPS = 1e-3  # of the inverse sigmoid: corrections start from logits within +-6.9


class Heads(nnx.Module):
    """Boxes are corrected as a whole; keypoints by place and, apart from it, by the extent around them."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        zeros, f32 = nnx.initializers.zeros, jnp.float32
        self.box = MLP((width, width, width, 4), dtype=f32, rngs=rngs, last=zeros)
        self.point = MLP((width, width, width, 2), dtype=f32, rngs=rngs, last=zeros)
        self.extent = MLP((width, width, width, 2), dtype=f32, rngs=rngs)

    def boxes(self, x: Float[Array, "*B W"], references: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
        """References corrected as boxes."""
        return corrected(references, self.box(x.astype(jnp.float32)))

    def points(self, x: Float[Array, "*#B W"], references: Float[Array, "*#B 2"]) -> Float[Array, "*#B 2"]:
        """References (x, y) corrected as points."""
        return corrected(references, self.point(x.astype(jnp.float32)))

    def keypoints(self, x: Float[Array, "*B W"], references: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
        """References corrected as keypoints with their extent."""
        x = x.astype(jnp.float32)
        return corrected(references, jnp.concatenate([self.point(x), self.extent(x)], axis=-1))


def corrected(references: Float[Array, "*#B C"], by: Float[Array, "*#B C"]) -> Float[Array, "*#B C"]:
    """References (0 to 1) moved by logits."""
    return jax.nn.sigmoid(inverse_sigmoid(references, EPS) + by)
