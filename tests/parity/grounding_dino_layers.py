# SPDX-License-Identifier: Apache-2.0
"""Single layers: fusion, class layer, encoder layer, decoder layer; forward and gradients of their inputs."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from vllm2_jax.decoders.grounding_dino.classes import positions, tiled, visible
from vllm2_jax.decoders.grounding_dino.decoder import Scene
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.pyramid import Pyramid
from vllm2_jax.nn.sine import sine
from vllm2_jax.nn.stack import unstack


def cases(folder: pathlib.Path) -> Iterator[Case]:
    model = gd.build(folder)
    picture = look(model, goldens.arrays(folder, "inputs"))
    yield from _fusion(folder, model, picture)
    yield from _class_layer(folder, model)
    yield from _encoder_layer(folder, model, picture)
    yield from _decoder_layer(folder, model, picture)


def look(model: GroundingDINO, data: dict[str, np.ndarray]) -> Pyramid:
    """The levels of the golden pictures."""

    def run(pixels, inside):
        return model.levels(model.backbone(pixels), inside)

    return jax.jit(run)(gd.pixels(data), jnp.asarray(data["pixel_mask"]))


def _fusion(folder: pathlib.Path, model: GroundingDINO, picture: Pyramid) -> Iterator[Case]:
    data = goldens.arrays(folder, "fusion")
    layer = unstack(model.encoder.layers)[0].fusion
    cells, classes = jnp.asarray(data["vision_in"]), jnp.asarray(data["text_in"])
    seen = [jnp.asarray(~data[f"{kind}_padding_mask"]) for kind in ("vision", "text")]
    yield "cells that enter the encoder", np.asarray(picture.cells), data["vision_in"]
    yield "cells inside the picture", np.asarray(picture.valid), ~data["vision_padding_mask"]

    def run(cells, classes):
        out = layer(cells, classes, *seen)
        return gd.probed(out), out

    (_, out), grads = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(cells, classes)
    yield "fused cells", np.asarray(out[0]), data["vision_out"]
    yield "fused classes", np.asarray(out[1]), data["text_out"]
    yield from _input_gradients(data, grads)

    weights = layer.weights(layer.cell_norm(cells), layer.class_norm(classes), *seen)
    by_cell, by_class = (np.asarray(x).swapaxes(1, 2) for x in weights)  # heads in front, as officially
    by_cell = by_cell.reshape(-1, *by_cell.shape[2:])
    head = data["attn_vision_over_text_head"]
    yield "weights of cells over classes", by_cell[:, : head.shape[1]], head
    turned = by_class.reshape(-1, *by_class.shape[2:]).swapaxes(1, 2)
    yield "weights of classes over cells", turned, data["attn_text_over_vision"]


def _class_layer(folder: pathlib.Path, model: GroundingDINO) -> Iterator[Case]:
    data = goldens.arrays(folder, "fusion")
    layer = unstack(model.encoder.layers)[0].classes
    valid = jnp.asarray(~data["text_padding_mask"])
    mask = visible(valid)
    places = sine(positions(valid), layer.norm1.scale.shape[-1])
    yield "classes that see each other", np.asarray(mask), ~data["enhancer/attn_block_mask"]
    yield "places of classes", np.asarray(places), data["enhancer/text_pos"]

    def run(classes):
        out = layer(classes, places, mask)
        return gd.probed((out,)), out

    classes = jnp.asarray(data["enhancer/text_in"])
    (_, out), grad = jax.jit(jax.value_and_grad(run, has_aux=True))(classes)
    yield "classes after their layer", np.asarray(out), data["enhancer/text_out"]
    yield "class layer grad of classes", np.asarray(grad), data["enhancer/grad_text_in"]
    attention = layer.attention
    query = classes + places
    scores = jnp.einsum("bthd,bshd->bhts", attention.q(query), attention.k(query))
    scores = scores / np.sqrt(attention.q.kernel_shape[-1])
    weights = jax.nn.softmax(jnp.where(tiled(mask, layer.heads), scores, -jnp.inf))
    yield "weights of the tiled masks", np.asarray(weights), data["enhancer/attn_weights"]


def _encoder_layer(folder: pathlib.Path, model: GroundingDINO, picture: Pyramid) -> Iterator[Case]:
    inputs, data = goldens.arrays(folder, "fusion"), goldens.arrays(folder, "enc_layer")
    layer = unstack(model.encoder.layers)[0]
    valid = jnp.asarray(~inputs["text_padding_mask"])

    def run(cells, classes):
        out = layer(cells, classes, picture, valid)
        return gd.probed(out), out

    found = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    (_, out), grads = found(jnp.asarray(inputs["vision_in"]), jnp.asarray(inputs["text_in"]))
    yield "cells after a layer", np.asarray(out[0]), data["vision_out"]
    yield "classes after a layer", np.asarray(out[1]), data["text_out"]
    yield from _input_gradients(data, grads)


def _decoder_layer(folder: pathlib.Path, model: GroundingDINO, picture: Pyramid) -> Iterator[Case]:
    data = goldens.arrays(folder, "dec_layer")
    layer = unstack(model.decoder.layers)[1]
    names = ("hidden_in", "query_pos", "text")
    queries, places, classes = (jnp.asarray(data[name]) for name in names)
    cells = jnp.asarray(goldens.arrays(folder, "two_stage")["encoder_vision"])
    for name in ("nomask", "masked"):
        mask = None
        if name == "masked":
            mask = jnp.broadcast_to(
                ~data["masked/self_attn_block_mask"], (len(queries), *[queries.shape[1]] * 2)
            )

        def run(queries, places, classes, cells, mask=mask):
            scene = Scene(
                cells,
                classes,
                jnp.asarray(data["vision_valid_mask"]),
                jnp.asarray(~data["text_padding_mask"]),
                picture.ratios,
                mask,
                picture.shapes,
            )
            out = layer(queries, places, jnp.asarray(data["reference_points_input"]), scene)
            return gd.probed((out,)), out

        found = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))
        (_, out), grads = found(queries, places, classes, cells)
        yield f"queries after a layer, {name}", np.asarray(out), data[f"{name}/out"]
        for part, grad in zip(names, grads, strict=False):
            yield f"{name} grad of {part}", np.asarray(grad), data[f"{name}/grad_{part}"]
        yield f"{name} grad of cells", gd.stats(grads[3]), data[f"{name}/grad_stats_vision"]


def _input_gradients(data: dict[str, np.ndarray], grads: tuple[jax.Array, ...]) -> Iterator[Case]:
    cells, classes = (np.asarray(grad) for grad in grads)
    head = data["grad_vision_in_head"]
    yield "grad of cells", cells[:, : head.shape[1]], head
    yield "grad of cells, whole", gd.stats(cells), data["grad_stats_vision_in"]
    yield "grad of classes", classes, data["grad_text_in"]
