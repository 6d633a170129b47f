# SPDX-License-Identifier: Apache-2.0
"""The decoder: queries with boxes that every layer moves."""

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.pyramid import EPS
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.deformable import DeformableAttention
from vllm2_jax.nn.dropout import dropout, keys
from vllm2_jax.nn.layers import LayerNorm
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.nn.multihead import MultiHeadAttention
from vllm2_jax.nn.sine import sine_boxes
from vllm2_jax.nn.stack import run, stack
from vllm2_jax.ops.boxes import inverse_sigmoid
from vllm2_jax.ops.levels import Shapes

BOX_EPS = 1e-5  # boxes are moved as logits, within +-11.5


@struct.dataclass
class Scene:
    """What queries look at; the same for all layers.

    Attributes:
      cells, classes: of the encoder.
      valid_cells, valid_classes: which of them exist.
      ratios: share of each level's width and height that the picture fills.
      mask: which query may look at which; None is all at all.
      shapes: (height, width) of the levels.
    """

    cells: Float[Array, "B S W"]
    classes: Float[Array, "B K W"]
    valid_cells: Bool[Array, "B S"]
    valid_classes: Bool[Array, "B K"]
    ratios: Float[Array, "B L 2"]
    mask: Bool[Array, "B T T"] | None
    shapes: Shapes = struct.field(pytree_node=False)


class DecoderLayer(nnx.Module):
    """Queries look at each other, at the classes and at the cells around their boxes; post-norm."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, heads = config.width, config.decoder_heads

        def norm() -> LayerNorm:
            return LayerNorm(width, eps=EPS, rngs=rngs)

        self.to_queries = MultiHeadAttention(width, heads, dtype=dtype, rngs=rngs)
        self.to_classes = MultiHeadAttention(width, heads, dtype=dtype, rngs=rngs)
        self.to_cells = DeformableAttention(
            width, heads, config.levels, config.decoder_points, dtype=dtype, rngs=rngs
        )
        self.mlp = MLP((width, config.decoder_mlp, width), dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3, self.norm4 = norm(), norm(), norm(), norm()
        self.rate = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T W"],
        places: Float[Array, "B T W"],
        boxes: Float[Array, "B T L 4"],
        scene: Scene,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T W"]:
        """The queries after the layer.

        Args:
          places: their boxes, embedded.
          boxes: on every level, as shares of its padded map.
          scene: what they look at.
          key: drops.
        """
        drop = keys(key, 4)
        query = x + places
        x = self.norm1(x + dropout(self.among_queries(query, x, scene), self.rate, drop[0]))
        may_see = jnp.broadcast_to(scene.valid_classes[:, None], (*x.shape[:2], scene.classes.shape[1]))
        seen = self.to_classes(x + places, scene.classes, scene.classes, may_see)
        x = self.norm2(x + dropout(seen, self.rate, drop[1]))
        seen = self.to_cells(x + places, scene.cells, scene.valid_cells, boxes, scene.shapes)
        x = self.norm3(x + dropout(seen, self.rate, drop[2]))
        x = self.norm4(x + dropout(self.mlp(x), self.rate, drop[3]))
        return constrain(x, "batch", None, None)

    def among_queries(
        self, query: Float[Array, "B T W"], x: Float[Array, "B T W"], scene: Scene
    ) -> Float[Array, "B T W"]:
        """What queries see of each other. The pose decoder does this in pieces."""
        return self.to_queries(query, query, x, scene.mask)


class Decoder(nnx.Module):
    """All layers as one stacked module, with what they share: box head, embedding of boxes and last norm."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width
        self.layers = stack(
            lambda rngs: DecoderLayer(config, dtype=dtype, rngs=rngs), config.decoder_layers, rngs
        )
        self.norm = LayerNorm(width, eps=EPS, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.reference_head = MLP((2 * width, width, width), dtype=dtype, rngs=rngs, last=zeros)
        self.box_head = MLP((width, width, width, 4), dtype=jnp.float32, rngs=rngs, last=zeros)
        self.depth, self.remat, self.dtype = config.decoder_layers, config.remat, dtype

    def places(self, boxes: Float[Array, "B T 4"]) -> Float[Array, "B T W"]:
        """Embeds boxes (shares of the padded picture)."""
        width = self.norm.scale.shape[-1]
        return self.reference_head(sine_boxes(boxes, width // 2).astype(self.dtype))

    def move(self, x: Float[Array, "*B W"], boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
        """Boxes corrected by the queries at their places; float32."""
        return jax.nn.sigmoid(self.box_head(x) + inverse_sigmoid(boxes, BOX_EPS))

    def __call__(
        self,
        content: Float[Array, "B T W"],
        boxes: Float[Array, "B T 4"],
        scene: Scene,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "L B T W"], Float[Array, "D B T 4"]]:
        """The queries after each layer, normed, and where they stood: `D = L + 1` boxes, without gradient.

        A layer's refinement reads the queries before `norm`, a prediction (`move` by the layer's output, from
        the boxes that entered the layer) those after it, with the same head, as in the official code.
        """

        def body(carry, x):
            hidden, boxes = carry
            layer, key = x
            on_levels = boxes[:, :, None] * jnp.tile(scene.ratios, 2)[:, None]
            hidden = layer(hidden, self.places(on_levels[:, :, 0]), on_levels, scene, key)
            boxes = jax.lax.stop_gradient(self.move(hidden, boxes))
            return (hidden, boxes), (self.norm(hidden), boxes)

        drops = None if key is None else jax.random.split(key, self.depth)
        start = jax.lax.stop_gradient(boxes)
        _, (hidden, moved) = run(body, (content, start), (self.layers, drops), remat=self.remat)
        return hidden, jnp.concatenate([start[None], moved])
