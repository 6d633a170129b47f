# SPDX-License-Identifier: Apache-2.0
"""What it costs to give a prediction to an object; the matching makes the sum least.

Source: official `HungarianMatcher`. Places without an object cost something, too; `ops.matching` ignores it.
"""

from jaxtyping import Array, Float

from vllm2_jax.decoders.unipose.config import CriterionConfig
from vllm2_jax.decoders.unipose.targets import Truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, giou
from vllm2_jax.ops.keypoints import oks, visible_l1
from vllm2_jax.ops.matching import class_cost, l1_cost

GIOU_EPS = 1e-6  # in the divisors of costs and losses; Grounding DINO has none


def box_costs(
    logits: Float[Array, "B Q T"], boxes: Float[Array, "B Q 4"], truth: Truth, config: CriterionConfig
) -> Float[Array, "B Q N"]:
    """Class, distance and overlap of every pair of a query and an object."""
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth.boxes), eps=GIOU_EPS)
    return (
        config.class_cost * class_cost(logits, truth.labels)
        + config.box_cost * l1_cost(boxes, truth.boxes)
        - config.giou_cost * overlap
    )


def keypoint_costs(
    keypoints: Float[Array, "B Q P 2"],
    truth: Truth,
    sigmas: Float[Array, "B P"],
    config: CriterionConfig,
) -> Float[Array, "B Q N"]:
    """What keypoints add: their distance, and how little they are alike."""
    found, wanted, visible = keypoints[:, :, None], truth.keypoints[:, None], truth.visible[:, None]
    alike = oks(found, wanted, visible, truth.area[:, None], sigmas[:, None, None])
    return config.keypoint_cost * visible_l1(found, wanted, visible) + config.oks_cost * (1 - alike)


def figure_costs(
    logits: Float[Array, "B Q T"],
    boxes: Float[Array, "B Q 4"],
    keypoints: Float[Array, "B Q P 2"],
    truth: Truth,
    sigmas: Float[Array, "B P"],
    config: CriterionConfig,
) -> Float[Array, "B Q N"]:
    """Everything together, for instances that have keypoints."""
    return box_costs(logits, boxes, truth, config) + keypoint_costs(keypoints, truth, sigmas, config)
