# SPDX-License-Identifier: Apache-2.0
"""The other layers over the queries: the best boxes, each with a query for every keypoint.

The queries of an instance stand together: its box, then P keypoints in the order of the links. Denoising
queries stay in front and go on as boxes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vllm2_jax.decoders.grounding_dino.classes import class_logits
from vllm2_jax.decoders.unipose.decoder import Decoder
from vllm2_jax.decoders.unipose.layer import Crowd
from vllm2_jax.decoders.unipose.outputs import Boxes, Figures
from vllm2_jax.nn.stack import run
from vllm2_jax.ops.select import top


def choose(
    decoder: Decoder, x: Float[Array, "B N W"], scene: Crowd
) -> tuple[Float[Array, "B G"], Int[Array, "B G"]]:
    """The best matching queries by their best class, best first, from queries before the norm."""
    logits = class_logits(x[:, scene.sight.slots :], scene.classes, scene.valid_classes)
    return top(logits.max(-1), decoder.instances)


def expand(
    decoder: Decoder,
    x: Float[Array, "B N W"],
    references: Float[Array, "B N 4"],
    keypoints: Float[Array, "B P W"],
    chosen: Int[Array, "B G"],
    slots: int,
) -> tuple[Float[Array, "B M W"], Float[Array, "B M 4"]]:
    """The queries of the keypoint layers: the slots of denoising, then G * (1 + P) of the chosen instances.

    A keypoint starts from its embedding alone, at the middle of the box moved by what the embedding says,
    with a share of the box around it. All of this passes gradients on.
    """

    def pick(x: Array) -> Array:
        return jnp.take_along_axis(x[:, slots:], chosen[..., None], axis=1)[:, :, None]

    boxes, instances = pick(references), pick(x)
    places = decoder.heads.points(keypoints[:, None], boxes[..., :2])
    extents = decoder.sizes(keypoints.shape[1]) * boxes[..., 2:]
    content = jnp.broadcast_to(keypoints[:, None].astype(x.dtype), (*places.shape[:3], x.shape[-1]))
    figures = jnp.concatenate([instances, content], axis=2)
    around = jnp.concatenate([boxes, jnp.concatenate([places, extents], axis=-1)], axis=2)
    return (
        jnp.concatenate([x[:, :slots], figures.reshape(len(x), -1, x.shape[-1])], axis=1),
        jnp.concatenate([references[:, :slots], around.reshape(len(x), -1, 4)], axis=1),
    )


def find_keypoints(
    decoder: Decoder,
    x: Float[Array, "B M W"],
    references: Float[Array, "B M 4"],
    scene: Crowd,
) -> tuple[Boxes, Figures]:
    """All keypoint layers; returns what they say of the denoising queries and of the instances."""
    instances, heads, slots = decoder.instances, decoder.heads, scene.sight.slots

    def body(carry, layer):
        x, references = carry
        fixed = jax.lax.stop_gradient(references)
        x = decoder.look(layer, x, fixed, scene)
        normed, starts = decoder.norm(x), references
        (noise, boxes, points) = cut(normed, slots, instances)
        (noise_start, box_start, point_start) = cut(starts, slots, instances)
        figures = Figures(
            class_logits(boxes, scene.classes, scene.valid_classes),
            heads.boxes(boxes, box_start),
            heads.points(points, point_start[..., :2]),
        )
        denoised = Boxes(
            class_logits(noise, scene.classes, scene.valid_classes), heads.boxes(noise, noise_start)
        )
        return (x, move(decoder, x, fixed, slots)), (denoised, figures)

    layers = decoder.part(decoder.box_layers, None)
    _, found = run(body, (x, references), layers, remat=decoder.remat)
    return found


def cut(
    x: Float[Array, "B M C"], slots: int, instances: int
) -> tuple[Float[Array, "B D C"], Float[Array, "B G C"], Float[Array, "B G P C"]]:
    """Denoising queries, instances, keypoints of the instances."""
    figures = x[:, slots:].reshape(len(x), instances, -1, x.shape[-1])
    return x[:, :slots], figures[:, :, 0], figures[:, :, 1:]


def move(
    decoder: Decoder, x: Float[Array, "B M W"], references: Float[Array, "B M 4"], slots: int
) -> Float[Array, "B M 4"]:
    """The references of the next layer."""
    noise, boxes, points = cut(x, slots, decoder.instances)
    starts = cut(references, slots, decoder.instances)
    heads = decoder.heads
    moved = jnp.concatenate(
        [heads.boxes(boxes, starts[1])[:, :, None], heads.keypoints(points, starts[2])], 2
    )
    return jnp.concatenate([heads.boxes(noise, starts[0]), moved.reshape(len(x), -1, 4)], axis=1)
