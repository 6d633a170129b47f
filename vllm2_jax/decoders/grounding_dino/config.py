# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of the grounding decoder; the defaults are those of the released Swin-T model."""

import dataclasses

from vllm2_jax.vision.swin import SWIN, SwinConfig


@dataclasses.dataclass(frozen=True)
class CriterionConfig:
    """Weights of loss terms and costs, and how denoising queries are made.

    Attributes:
      class_weight, box_weight, giou_weight, mask_weight, dice_weight: coefficients of the loss terms.
      class_cost, box_cost, giou_cost: coefficients of the matching costs; masks do not take part.
      points: places at which a predicted mask is compared with the truth.
      oversample: candidates for each of them.
      importance: share of the points that are the most uncertain candidates.
      denoising: about how many positive noisy copies of objects a row gets, and as many negative ones; 0 for
        none.
      label_noise: twice the share of copies that get a random class.
      box_noise: corners move by up to this many half sides (negative copies up to one further).
      labelbook: random classes are drawn among the first that many of a batch.
    """

    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75
    denoising: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    labelbook: int = 256


@dataclasses.dataclass(frozen=True)
class GroundingDINOConfig:
    """The whole decoder.

    Attributes:
      backbone: a Swin; its last three maps feed the levels, the first that comes out the masks. With all four
        stages masks have stride 4, as the official code expects; with three, stride 8.
      width: of cells, classes and queries; a multiple of 32, for the group norms have 32 groups.
      levels: feature maps; 3 are the backbone's strides 8, 16 and 32, the fourth has stride 64.
      queries: learned queries, which is the most objects a picture can have.
      detections: pairs of a query and a class in an answer. The official evaluations take 100, CrowdHuman's
        500 and interactive segmentation's 300.
      encoder_layers, encoder_heads, encoder_mlp, encoder_points: of the deformable layers over the cells;
        fusion with the classes and attention among the classes use half the heads and half the width.
      decoder_layers, decoder_heads, decoder_mlp, decoder_points: of the layers over the queries.
      mask_width: of mask embeddings and mask features.
      temperature: of the sine positions of cells.
      dropout: after each part of a deformable or decoder layer.
      drop_path: chance that a picture skips a fusion.
      faithful: repeat what is plainly wrong in the official code instead of putting it right: which classes
        see which ones in a batch of several rows, NaN for all rows if one has no class, and rejected cells
        among the chosen ones (`docs/differences.md`).
      criterion: losses and denoising.
      dtype: of products and activations; boxes and logits are float32.
      remat: what the backward pass keeps of each encoder and decoder layer; a key of `nn.stack.REMAT`.
    """

    backbone: SwinConfig = SWIN["tiny"]
    width: int = 256
    levels: int = 4
    queries: int = 900
    detections: int = 100
    encoder_layers: int = 6
    encoder_heads: int = 8
    encoder_mlp: int = 2048
    encoder_points: int = 4
    decoder_layers: int = 6
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    decoder_points: int = 4
    mask_width: int = 256
    temperature: float = 20.0
    dropout: float = 0.1
    drop_path: float = 0.1
    faithful: bool = False
    criterion: CriterionConfig = dataclasses.field(default_factory=CriterionConfig)
    dtype: str = "bfloat16"
    remat: str = "none"

    def __post_init__(self):
        if self.levels not in (3, 4):
            raise ValueError(f"levels={self.levels}: the masks need stride 4, which takes 3 or 4 levels")
        if self.width % 32:
            raise ValueError(f"width={self.width} is not a multiple of the 32 groups of the group norms")
