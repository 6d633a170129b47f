# SPDX-License-Identifier: Apache-2.0
"""Denoising queries of the pose decoder: disturbed boxes, with the embedding of a (sometimes wrong) class."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from vllm2_jax.decoders import denoising
from vllm2_jax.decoders.denoising import Draws, Layout
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.heads import EPS
from vllm2_jax.decoders.unipose.targets import Truth


@struct.dataclass
class Noise:
    """Where denoising queries start.

    Attributes:
      layout: what they are.
      content: of each; classes before the encoder, through which a gradient flows. Zeros where empty.
      boxes: 0 to 1; the middle of the picture, half as large, where empty.
    """

    layout: Layout
    content: Float[Array, "B D W"]
    boxes: Float[Array, "B D 4"]


def lay_out(truth: Truth, config: UniPoseConfig) -> Layout:
    """Groups for each row by itself; `faithful` cuts all rows by the most objects of the batch."""
    counts = truth.counts
    places = jnp.broadcast_to(counts.max(), counts.shape) if config.faithful else counts
    return denoising.lay_out(counts, places, config.criterion.denoising, truth.valid.shape[1])


def draw(key: jax.Array, layout: Layout, config: UniPoseConfig) -> Draws:
    """Fresh draws for a layout."""
    rows, slots = layout.group.shape
    return denoising.draw(key, rows, slots, config.criterion.labelbook)


def disturb(
    layout: Layout, draws: Draws, truth: Truth, text: Float[Array, "B T1 W"], config: UniPoseConfig
) -> Noise:
    """The queries.

    Args:
      text: embeddings of the T class places and one more, that of no class: a random label may be any of the
        `labelbook` places, of which most rows use few.
    """
    labels, logits = denoising.disturb(
        layout,
        draws,
        truth.boxes,
        truth.labels,
        label_noise=config.criterion.label_noise,
        box_noise=config.criterion.box_noise,
        eps=EPS,
    )
    content = jnp.take_along_axis(text, jnp.minimum(labels, text.shape[1] - 1)[..., None], axis=1)
    return Noise(layout, jnp.where(layout.real[..., None], content, 0), jax.nn.sigmoid(logits))
