# SPDX-License-Identifier: Apache-2.0
"""From the last layer's predictions to an answer: the best pairs of a query and a class, and maps of classes.

Source: official `eval_det.py` 18-104, `eval_semseg.py` 16-62. What depends on the original picture's size is
left to the host (`vllm2_jax/evals/postprocess.py`).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vllm2_jax.decoders.grounding_dino.outputs import Outputs, Predictions, mask_logits
from vllm2_jax.ops.select import best_pairs


@struct.dataclass
class Found:
    """The answer. Whoever leaves a field unread inside `jax.jit` does not pay for it.

    Attributes:
      scores: probability of the class, best first; 0 where the row has fewer pairs.
      labels: place of the class among the row's links.
      boxes: cx, cy, w, h in 0 to 1, shares of the picture.
      masks: of these M objects, as logits over the padded square at a quarter of its size.
      classes: how much of each class there is at a place: over all queries, the sum of the class' probability
        times the mask's. Semantic segmentation takes the largest.
    """

    scores: Float[Array, "B M"]
    labels: Int[Array, "B M"]
    boxes: Float[Array, "B M 4"]
    masks: Float[Array, "B M h w"]
    classes: Float[Array, "B K h w"]


def best(outputs: Outputs, count: int) -> Found:
    """The `count` best pairs of each row, or all if there are fewer."""
    last = jax.tree.map(lambda x: x[-1], outputs.layers)
    scores, query, labels = best_pairs(last.logits, count)
    boxes = jnp.take_along_axis(last.boxes, query[..., None], axis=1)
    masks = mask_logits(jnp.take_along_axis(last.masks, query[..., None], axis=1), outputs.mask_features)
    return Found(scores, labels, boxes, masks, class_maps(last, outputs.mask_features))


def class_maps(
    found: Predictions, features: Float[Array, "B h w M"], *, chunk: int = 100
) -> Float[Array, "B K h w"]:
    """`Found.classes`, some queries at a time: 900 masks of one picture of 1,344 pixels are 400 MB."""
    rows, queries, classes = found.logits.shape

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -queries % chunk), (0, 0)))
        return x.reshape(rows, -1, chunk, x.shape[-1]).swapaxes(0, 1)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        probabilities, masks = part
        inside = jax.nn.sigmoid(mask_logits(masks, features))
        return total + jnp.einsum("bqk,bqhw->bkhw", probabilities, inside), None

    nothing = jnp.zeros((rows, classes, *features.shape[1:3]), jnp.float32)
    # The queries that fill up the last part have probability 0.
    parts = (split(jax.nn.sigmoid(found.logits)), split(found.masks))
    return jax.lax.scan(add, nothing, parts)[0]
