# SPDX-License-Identifier: Apache-2.0
"""The two-stage part: every cell proposes a box, the best ones are where the queries start."""

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.decoders.grounding_dino.classes import class_logits
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.pyramid import EPS, Pyramid
from vllm2_jax.nn.layers import LayerNorm, linear
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.ops.levels import proposals
from vllm2_jax.ops.select import top

ZEROS = nnx.initializers.zeros


@struct.dataclass
class Chosen:
    """The best Q cells, best first.

    Attributes:
      index: which of the S cells.
      logits: of the classes.
      boxes: what they propose, 0 to 1.
    """

    index: Int[Array, "B Q"]
    logits: Float[Array, "B Q K"]
    boxes: Float[Array, "B Q 4"]


class Selection(nnx.Module):
    """Scores all cells against the classes; only the chosen ones get a box."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width
        self.project = linear(width, width, ("embed", None), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.box_head = MLP((width, width, width, 4), dtype=jnp.float32, rngs=rngs, last=ZEROS)
        self.queries, self.faithful = config.queries, config.faithful

    def memory(self, cells: Float[Array, "B S W"], usable: Bool[Array, "B S"]) -> Float[Array, "B S W"]:
        """What is scored; the same vector for all cells that are not usable."""
        return self.norm(self.project(jnp.where(usable[..., None], cells, 0)))

    def __call__(
        self,
        cells: Float[Array, "B S W"],
        classes: Float[Array, "B K W"],
        picture: Pyramid,
        valid_classes: Bool[Array, "B K"],
    ) -> Chosen:
        """The cells with the highest score of any class.

        Cells of the padding and close to the border all look alike and propose the whole picture's lower
        right corner, (1, 1, 1, 1). The official code lets them win; here they fill up at the end.

        Raises:
          ValueError: fewer cells than queries.
        """
        if cells.shape[1] < self.queries:
            raise ValueError(
                f"{self.queries} queries for {cells.shape[1]} cells; give larger pictures or fewer queries"
            )
        anchors, usable = proposals(picture.masks)
        memory = self.memory(cells, usable)
        logits = class_logits(memory, classes, valid_classes)
        scores = logits.max(axis=-1)
        if not self.faithful:
            scores = jnp.where(usable, scores, -jnp.inf)
        _, index = top(scores, self.queries)

        def chosen(x: Array) -> Array:
            return jnp.take_along_axis(x, index[..., None], axis=1)

        boxes = jax.nn.sigmoid(self.box_head(chosen(memory)) + chosen(anchors))
        return Chosen(index, chosen(logits), boxes)
