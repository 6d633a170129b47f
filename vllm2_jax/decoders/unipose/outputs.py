# SPDX-License-Identifier: Apache-2.0
"""What passes between the parts of the pose decoder: predictions of every layer, and the answer.

Boxes are (cx, cy, w, h) and keypoints (x, y), 0 to 1, in shares of the picture.
"""

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.decoders.denoising import Layout


@struct.dataclass
class Boxes:
    """Predictions of N queries; `*S` is a number of layers or nothing.

    Attributes:
      logits: of every class a row may have; `ABSENT` where it has none.
      boxes: 0 to 1.
    """

    logits: Float[Array, "*S B N T"]
    boxes: Float[Array, "*S B N 4"]


@struct.dataclass
class Figures:
    """Predictions of G instances, keypoints in the order of the links; `*S` as in `Boxes`."""

    logits: Float[Array, "*S B G T"]
    boxes: Float[Array, "*S B G 4"]
    keypoints: Float[Array, "*S B G P 2"]


@struct.dataclass
class Outputs:
    """Everything that losses and answers are made from; all float32.

    Attributes:
      proposals: the cells of the feature maps that the queries start from, best first.
      boxes: the queries after each box layer.
      figures: the chosen instances after each keypoint layer; the last entry is the answer.
      denoising: the denoising queries after each box layer and keypoint layer, or None without them.
      layout: what those are, or None.
      classes: which of the T classes a row has.
      keypoints: which of the P keypoints a row asks for.
    """

    proposals: Boxes
    boxes: Boxes
    figures: Figures
    denoising: Boxes | None
    layout: Layout | None
    classes: Bool[Array, "B T"]
    keypoints: Bool[Array, "B P"]


@struct.dataclass
class Poses:
    """The answer: the best pairs of an instance and a class, best first.

    Attributes:
      scores: probability of the class; 0 where the row has fewer pairs.
      labels: place of the class among the row's links.
      boxes, keypoints: of the instance; keypoints in the order of the links.
    """

    scores: Float[Array, "B M"]
    labels: Int[Array, "B M"]
    boxes: Float[Array, "B M 4"]
    keypoints: Float[Array, "B M P 2"]
