# SPDX-License-Identifier: Apache-2.0
"""What it costs to give a prediction to an object; the matching makes the sum least.

Masks do not count: the official code defines costs for them and leaves them out. Places without an object
cost something, too; `ops.matching` ignores it. Source: official `GroundingDinoHungarianMatcher`.
"""

from jaxtyping import Array, Float

from vllm2_jax.decoders.grounding_dino.config import CriterionConfig
from vllm2_jax.decoders.grounding_dino.targets import Truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, giou
from vllm2_jax.ops.matching import class_cost, l1_cost


def costs(
    logits: Float[Array, "B Q K"], boxes: Float[Array, "B Q 4"], truth: Truth, config: CriterionConfig
) -> Float[Array, "B Q N"]:
    """Class, distance and overlap of every pair of a query and an object."""
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth.boxes))
    return (
        config.class_cost * class_cost(logits, truth.labels)
        + config.box_cost * l1_cost(boxes, truth.boxes)
        - config.giou_cost * overlap
    )
