# SPDX-License-Identifier: Apache-2.0
"""What box layers and keypoint layers share: the stacked layers, positions, the norm and the heads."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.decoders.grounding_dino.pyramid import EPS
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.heads import Heads
from vllm2_jax.decoders.unipose.layer import Crowd, Layer
from vllm2_jax.nn.layers import LayerNorm, param
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.nn.sine import sine_boxes
from vllm2_jax.nn.stack import stack
from vllm2_jax.ops.keypoints import SIGMAS

BODY = 17  # keypoints whose first sizes stand in one official table, the others in another


class Decoder(nnx.Module):
    """Parameters of all layers over the queries; `box_decoder.py` and `keypoint_decoder.py` run them."""

    def __init__(self, config: UniPoseConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width
        self.layers = stack(
            lambda rngs: Layer(config.shared, dtype=dtype, rngs=rngs),
            config.box_layers + config.keypoint_layers,
            rngs,
        )
        self.norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.position = MLP((2 * width, width, width), dtype=dtype, rngs=rngs)
        self.heads = Heads(width, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.body = param(init, rngs, (BODY, 2), (None, None))
        self.other = param(init, rngs, (len(SIGMAS) - BODY, 2), (None, None))
        self.box_layers, self.instances = config.box_layers, config.instances
        self.remat, self.dtype = config.remat, dtype

    def part(self, start: int, stop: int | None) -> Layer:
        """Some of the stacked layers."""
        return jax.tree.map(lambda p: p[start:stop], self.layers)

    def look(
        self,
        layer: Layer,
        x: Float[Array, "B N W"],
        references: Float[Array, "B N 4"],
        scene: Crowd,
    ) -> Float[Array, "B N W"]:
        """One layer. References are shares of the picture, which fills each level a little differently."""
        on_levels = references[:, :, None] * jnp.tile(scene.ratios, 2)[:, None]
        return layer(x, self.places(on_levels[:, :, 0]), on_levels, scene)

    def places(self, boxes: Float[Array, "B N 4"]) -> Float[Array, "B N W"]:
        """Embeds boxes, which are shares of the finest level's padded map."""
        width = self.norm.scale.shape[-1]
        return self.position(sine_boxes(boxes, width // 2).astype(self.dtype))

    def sizes(self, keypoints: int) -> Float[Array, "P 2"]:
        """Width and height of what is around each keypoint at first, as shares of its box."""
        table = jnp.concatenate([self.body[...], self.other[...]])
        return jax.nn.sigmoid(table[:keypoints])
