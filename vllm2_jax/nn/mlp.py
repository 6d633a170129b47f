# SPDX-License-Identifier: Apache-2.0
"""Linear layers with ReLU between them: prediction heads and feed-forward layers of the detectors."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.layers import LECUN_NORMAL, linear


class MLP(nnx.Module):
    """`widths` are those of the input, of every layer in between and of the output.

    Boxes and points are corrections in float32: give `dtype` so. `last` initialises the last kernel; the
    official heads start at 0.
    """

    def __init__(
        self, widths: Sequence[int], *, dtype: DTypeLike, rngs: nnx.Rngs, last: Callable = LECUN_NORMAL
    ):
        inits = [LECUN_NORMAL] * (len(widths) - 2) + [last]
        # Every second product ends in a split axis, the next one sums over it: one all-reduce for two.
        axes = itertools.cycle([("embed", "mlp"), ("mlp", "embed")])
        self.layers = nnx.List(
            [
                linear(*pair, axis, dtype=dtype, rngs=rngs, init=init)
                for pair, axis, init in zip(itertools.pairwise(widths), axes, inits, strict=False)
            ]
        )

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Nothing is bent after the last layer."""
        *hidden, last = self.layers
        for layer in hidden:
            x = checkpoint_name(jax.nn.relu(layer(x)), "mlp_hidden")
        return last(x)
