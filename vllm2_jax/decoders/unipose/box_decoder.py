# SPDX-License-Identifier: Apache-2.0
"""The first layers over the queries: where things are, and of which class."""

import jax
from jaxtyping import Array, Float

from vllm2_jax.decoders.grounding_dino.classes import class_logits
from vllm2_jax.decoders.unipose.decoder import Decoder
from vllm2_jax.decoders.unipose.layer import Crowd
from vllm2_jax.decoders.unipose.outputs import Boxes
from vllm2_jax.nn.stack import run


def find_boxes(
    decoder: Decoder,
    x: Float[Array, "B N W"],
    references: Float[Array, "B N 4"],
    scene: Crowd,
) -> tuple[Float[Array, "B N W"], Float[Array, "B N 4"], Boxes]:
    """All box layers over N queries, denoising ones first.

    References pass no gradient from layer to layer. Predictions start from the references as they were before
    they were cut off, so the loss of a layer also reaches the layer before ("look forward twice").

    Returns:
      The queries (before the norm) and references after the last layer, the predictions of every layer.
    """

    def body(carry, layer):
        x, references = carry
        fixed = jax.lax.stop_gradient(references)
        x = decoder.look(layer, x, fixed, scene)
        normed = decoder.norm(x)
        found = Boxes(
            class_logits(normed, scene.classes, scene.valid_classes), decoder.heads.boxes(normed, references)
        )
        return (x, decoder.heads.boxes(x, fixed)), found

    layers = decoder.part(0, decoder.box_layers)
    (x, references), found = run(body, (x, references), layers, remat=decoder.remat)
    return x, references, found
