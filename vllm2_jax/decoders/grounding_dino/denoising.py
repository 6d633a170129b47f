# SPDX-License-Identifier: Apache-2.0
"""Denoising queries of the grounding decoder: disturbed boxes with the class they have, or another."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vllm2_jax.decoders import denoising
from vllm2_jax.decoders.denoising import Draws, Layout
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.decoder import BOX_EPS
from vllm2_jax.decoders.grounding_dino.outputs import Denoising
from vllm2_jax.decoders.grounding_dino.targets import Truth


def lay_out(truth: Truth, config: GroundingDINOConfig) -> Layout:
    """Groups for each row by itself; `faithful` cuts all rows by the most objects of the batch."""
    counts = truth.counts
    places = jnp.broadcast_to(counts.max(), counts.shape) if config.faithful else counts
    return denoising.lay_out(counts, places, config.criterion.denoising, truth.valid.shape[1])


def draw(key: jax.Array, layout: Layout, classes: Bool[Array, "B K"], config: GroundingDINOConfig) -> Draws:
    """Fresh draws for a layout.

    Args:
      classes: which classes a row has. A random label is one of them; with `faithful` it is below the largest
        number of classes in the batch, and may be a place where this row has none.
    """
    count = classes.sum(axis=1)
    bound = jnp.broadcast_to(count.max(), count.shape) if config.faithful else count
    bound = jnp.clip(bound, 1, config.criterion.labelbook)[:, None]
    rows, slots = layout.group.shape
    draws = denoising.draw(key, rows, slots, bound)
    classes_first = jnp.argsort(~classes, axis=1, stable=True)
    return dataclasses.replace(draws, label=jnp.take_along_axis(classes_first, draws.label, axis=1))


def disturb(
    layout: Layout, draws: Draws, truth: Truth, classes: Float[Array, "B K W"], config: GroundingDINOConfig
) -> Denoising:
    """The queries. Their gradient reaches the classes, hence the links.

    Args:
      classes: embeddings of links as the encoder gets them.
    """
    labels, logits = denoising.disturb(
        layout,
        draws,
        truth.boxes,
        truth.labels,
        label_noise=config.criterion.label_noise,
        box_noise=config.criterion.box_noise,
        eps=BOX_EPS,
    )
    content = jnp.take_along_axis(classes, labels[..., None], axis=1)
    # Matching queries must not see the truth: they look at each other only.
    rows, slots = layout.group.shape
    own = jnp.broadcast_to(
        jnp.arange(slots + config.queries) >= slots, (rows, config.queries, slots + config.queries)
    )
    return Denoising(
        content=jnp.where(layout.real[..., None], content, 0),
        boxes=jax.nn.sigmoid(logits),
        mask=jnp.concatenate([denoising.sees(layout, config.queries), own], axis=1),
    )
