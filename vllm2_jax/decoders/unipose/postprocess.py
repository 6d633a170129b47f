# SPDX-License-Identifier: Apache-2.0
"""From the last layer's predictions to an answer: the best pairs of an instance and a class.

An instance may appear once for each class. All keypoints of an instance are equally certain: the official
code has no score for them (`eval_pose.py` writes 1).
"""

import jax.numpy as jnp
from jaxtyping import Array

from vllm2_jax.decoders.unipose.outputs import Outputs, Poses
from vllm2_jax.ops.select import best_pairs


def best(outputs: Outputs, count: int = 100) -> Poses:
    """The `count` best pairs of each row, or all if there are fewer."""
    last = outputs.figures
    scores, instance, labels = best_pairs(last.logits[-1], count)

    def chosen(x: Array) -> Array:
        return jnp.take_along_axis(x, instance.reshape(*instance.shape, *[1] * (x.ndim - 2)), axis=1)

    return Poses(scores, labels, boxes=chosen(last.boxes[-1]), keypoints=chosen(last.keypoints[-1]))
