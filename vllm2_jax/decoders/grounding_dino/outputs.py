# SPDX-License-Identifier: Apache-2.0
"""What passes between the parts of the grounding decoder: predictions, and queries made from ground truth.

Boxes are (cx, cy, w, h) in shares of the *picture*, not of the padded square it lies in: the model divides by
the valid part of every feature map, and targets by the picture's width and height.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

# Class logit where a row has no class (official: -inf). Its sigmoid is 0, and so is its product with 0.
ABSENT = -1e4


@struct.dataclass
class Predictions:
    """Predictions of N queries; `*S` is the decoder's layers or nothing.

    Attributes:
      logits: of every class (link) a row may have; `ABSENT` where it has none.
      boxes: 0 to 1.
      masks: an embedding for each query, whose product with `Outputs.mask_features` is its mask (see
        `mask_logits`). Masks of all queries and layers would be gigabytes: whoever needs some, multiplies.
    """

    logits: Float[Array, "*S B N K"]
    boxes: Float[Array, "*S B N 4"]
    masks: Float[Array, "*S B N M"]


def mask_logits(
    masks: Float[Array, "*S B N M"], features: Float[Array, "B h w M"]
) -> Float[Array, "*S B N h w"]:
    """The masks of N queries over the padded square at a quarter of its size, float32."""
    return jnp.einsum("...bnm,bhwm->...bnhw", masks, features, preferred_element_type=jnp.float32)


@struct.dataclass
class Denoising:
    """Queries made from noisy ground truth, which go in front of the learned ones (`denoising.py`).

    Attributes:
      content: D embeddings of (possibly wrong) classes; zeros in unused slots.
      boxes: where they start, 0 to 1.
      mask: which query may look at which one in self-attention, T = D + number of learned queries;
        one for all rows or one each.
    """

    content: Float[Array, "B D W"]
    boxes: Float[Array, "B D 4"]
    mask: Bool[Array, "#B T T"]


@struct.dataclass
class Outputs:
    """Everything that losses and predictions are made from; logits and boxes are float32.

    Attributes:
      layers: the learned queries after each of the L decoder layers (`*S` = L); the last entry is the answer.
      denoising: the denoising queries after each layer, or None without them.
      encoder: the cells of the feature maps that the queries start from (`*S` = nothing), best first.
      mask_features: at a quarter of the padded square's size.
      classes: which of the K classes a row has.
    """

    layers: Predictions
    denoising: Predictions | None
    encoder: Predictions
    mask_features: Float[Array, "B h w M"]
    classes: Bool[Array, "B K"]
