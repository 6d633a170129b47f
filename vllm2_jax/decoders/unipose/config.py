# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of the pose decoder; the defaults are those of the released Swin-T model."""

import dataclasses

from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.vision.swin import SWIN, SwinConfig

# Stages at strides 8, 16 and 32; blocks drop their branches more often the deeper they are.
BACKBONE = dataclasses.replace(SWIN["tiny"], stages=(1, 2, 3), drop="linear", drop_path=0.2)


@dataclasses.dataclass(frozen=True)
class CriterionConfig:
    """Weights of loss terms and costs, and how denoising queries are made.

    Attributes:
      class_weight, box_weight, giou_weight, keypoint_weight: coefficients of the loss terms. Keypoint
        similarity takes `keypoint_weight` too: the official code sets another number that it never reads.
      class_cost, box_cost, giou_cost, keypoint_cost, oks_cost: coefficients of the matching costs.
      denoising: positive queries made from ground truth, about; 0 for none.
      label_noise: twice the share of those that get a random class.
      labelbook: random classes are drawn among that many places, used or not (official: its 100 slots).
      box_noise: corners move by up to this many half sides (those of negative queries up to one further).
    """

    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    keypoint_weight: float = 10.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    keypoint_cost: float = 10.0
    oks_cost: float = 4.0
    denoising: int = 100
    label_noise: float = 0.5
    labelbook: int = 100
    box_noise: float = 1.0


@dataclasses.dataclass(frozen=True)
class UniPoseConfig:
    """The whole decoder.

    Attributes:
      backbone: a Swin; the stages that come out feed the levels.
      width: of cells, classes, keypoints and queries; a multiple of 32, for the group norms have 32 groups.
      queries: boxes that the first layers look for.
      instances: the best of them, which get keypoints; the most objects a picture can have.
      heads, mlp, points: of all deformable layers; fusion with the classes and attention among the classes
        use half the heads and half the width.
      encoder_layers: over the cells.
      box_layers, keypoint_layers: over the queries, one after the other.
      temperature: of the sine positions of cells.
      drop_path: chance that a picture skips a fusion in training.
      faithful: repeat what is plainly wrong in the official code instead of putting it right: which classes
        see which in a batch of several rows, which keypoints see which outside of training, rejected cells
        among the chosen ones, NaN for all rows if one has no class, denoising groups that depend on the
        other rows' objects (`docs/differences.md`).
      criterion: losses and denoising.
      dtype: of products and activations; references, boxes, keypoints and logits are float32.
      remat: what the backward pass keeps of each layer; a key of `nn.stack.REMAT`.
    """

    backbone: SwinConfig = BACKBONE
    width: int = 256
    queries: int = 900
    instances: int = 50
    heads: int = 8
    mlp: int = 2048
    points: int = 4
    encoder_layers: int = 6
    box_layers: int = 2
    keypoint_layers: int = 4
    temperature: float = 20.0
    drop_path: float = 0.1
    faithful: bool = False
    criterion: CriterionConfig = dataclasses.field(default_factory=CriterionConfig)
    dtype: str = "bfloat16"
    remat: str = "none"

    @property
    def levels(self) -> int:
        """Feature maps: those of the backbone and one of twice the last one's stride."""
        return len(self.backbone.stages) + 1

    @property
    def shared(self) -> GroundingDINOConfig:
        """The same sizes for what is Grounding DINO's: levels, encoder, selection and layers."""
        return GroundingDINOConfig(
            backbone=self.backbone,
            width=self.width,
            levels=self.levels,
            queries=self.queries,
            encoder_layers=self.encoder_layers,
            encoder_heads=self.heads,
            encoder_mlp=self.mlp,
            encoder_points=self.points,
            decoder_layers=self.box_layers + self.keypoint_layers,
            decoder_heads=self.heads,
            decoder_mlp=self.mlp,
            decoder_points=self.points,
            temperature=self.temperature,
            dropout=0.0,
            drop_path=self.drop_path,
            faithful=self.faithful,
            dtype=self.dtype,
            remat=self.remat,
        )

    def __post_init__(self):
        if len(self.backbone.stages) != 3:
            raise ValueError(f"the levels are made from 3 stages of the backbone, not {self.backbone.stages}")
        if self.width % 32:
            raise ValueError(f"width={self.width} is not a multiple of the 32 groups of the group norms")
        if self.instances > self.queries:
            raise ValueError(f"instances={self.instances} cannot be chosen among queries={self.queries}")
        if not (self.box_layers and self.keypoint_layers):
            raise ValueError("at least one box layer and one keypoint layer: the last one gives the answer")
