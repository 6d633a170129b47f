# SPDX-License-Identifier: Apache-2.0
"""Every block of the pose decoder on the official inputs: backbone, encoder, selection, both kinds of layers.

Classes and keypoints have all the places that the official code gives them here.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, unipose_inputs
from tests.parity.unipose_model import build, config, maps
from vllm2_jax.decoders.grounding_dino.classes import class_logits, positions, visible
from vllm2_jax.decoders.grounding_dino.pyramid import Pyramid
from vllm2_jax.decoders.unipose.keypoint_decoder import choose, expand, move
from vllm2_jax.decoders.unipose.layer import Crowd
from vllm2_jax.decoders.unipose.model import UniPose, split
from vllm2_jax.decoders.unipose.sight import Sight, of_figures
from vllm2_jax.nn.sine import sine, sine_boxes
from vllm2_jax.nn.stack import unstack
from vllm2_jax.ops import levels

BODY_POINTS = unipose_inputs.BODY_POINTS


def cases(folder: pathlib.Path) -> Iterator[Case]:
    slots = goldens.config(folder)["padded_queries_to"]
    links = unipose_inputs.links(folder, (slots, BODY_POINTS))
    classes, keypoints = split(links, BODY_POINTS)
    model = build(folder, config(folder, ""))
    pyramid = yield from _pyramid(folder, model)
    text, points = model.class_encoder(classes), model.keypoint_encoder(keypoints)
    points = jnp.where(keypoints.valid[..., None], points, 0)
    data = goldens.arrays(folder, "encoder")
    yield "classes", np.asarray(text), data["text.obj_projected"]
    yield "keypoints", np.asarray(points), data["kpt_embed"]
    yield from _encoder(model, pyramid, text, classes.valid, data)
    scene = Crowd(
        jnp.asarray(data["enc_out.memory"]),
        jnp.asarray(data["enc_out.memory_text"]),
        pyramid.valid,
        classes.valid,
        pyramid.ratios,
        mask=None,
        shapes=pyramid.shapes,
        sight=Sight(None, None),
    )
    yield from _selection(folder, model, scene, pyramid)
    yield from _boxes(folder, model, scene)
    for suffix in ("_small", ""):
        other = build(folder, config(folder, suffix))
        for name, got, want in _keypoints(folder, suffix, other, scene, points, keypoints.valid):
            yield f"{name}{suffix}", got, want


def _pyramid(folder: pathlib.Path, model: UniPose) -> Iterator[Case]:
    """From the backbone's maps, which have a part of their own, to the encoder's input."""
    data, inputs = goldens.arrays(folder, "backbone"), goldens.arrays(folder, "inputs")
    stages = len(model.config.backbone.stages)
    features = tuple(jnp.asarray(maps(data[f"backbone.feat{i}"])) for i in range(stages))
    pyramid = model.levels(features, jnp.asarray(~inputs["mask"]))
    for i, level in enumerate(model.levels.maps(features)):
        yield f"level {i}", np.asarray(level), maps(data[f"input_proj.{i}"])
    want = goldens.arrays(folder, "encoder")
    yield "cells", np.asarray(pyramid.cells), want["enc_in.src"]
    yield "positions", np.asarray(pyramid.positions), want["enc_in.pos"]
    yield "cells in the picture", np.asarray(pyramid.valid), ~want["enc_in.key_padding_mask"]
    yield "shapes", np.array(pyramid.shapes), want["enc_in.spatial_shapes"]
    starts = np.cumsum([0] + [h * w for h, w in pyramid.shapes[:-1]])
    yield "starts of the levels", starts, want["enc_in.level_start_index"]
    yield "share of the levels", np.asarray(pyramid.ratios), want["enc_in.valid_ratios"]
    return pyramid


def _encoder(
    model: UniPose, pyramid: Pyramid, text: jax.Array, valid: jax.Array, data: dict[str, np.ndarray]
) -> Iterator[Case]:
    yield "classes seen", np.asarray(visible(valid)), data["enc_in.text_self_attention_masks"]
    yield "places of classes", np.asarray(positions(valid)), data["enc_in.position_ids"]
    yield "free places of classes", np.asarray(~valid), data["enc_in.text_attention_mask"]
    layer = unstack(model.encoder.layers)[0]
    cells, classes = layer.fusion(pyramid.cells, text, pyramid.valid, valid)
    yield "fusion, cells", np.asarray(cells), data["enc.fusion0.v"]
    yield "fusion, classes", np.asarray(classes), data["enc.fusion0.l"]
    places = sine(positions(valid), text.shape[-1])
    classes = layer.classes(jnp.asarray(data["enc.fusion0.l"]), places, visible(valid))
    yield "class layer", np.asarray(classes), data["enc.text0"]
    cells = layer.cells(jnp.asarray(data["enc.fusion0.v"]), pyramid)
    yield "cell layer", np.asarray(cells), data["enc.layer0"]
    cells, classes = jax.jit(lambda model, *x: model.encoder(*x))(model, pyramid, text, valid)
    yield "encoder, cells", np.asarray(cells), data["enc_out.memory"]
    yield "encoder, classes", np.asarray(classes), data["enc_out.memory_text"]


def _selection(folder: pathlib.Path, model: UniPose, scene: Crowd, pyramid: Pyramid) -> Iterator[Case]:
    data = goldens.arrays(folder, "two_stage")
    anchors, usable = levels.proposals(pyramid.masks)
    want = data["two_stage.proposals_unsig"]
    yield "usable cells", np.asarray(usable), np.isfinite(want).all(-1)
    yield "proposals", _zero_inf(anchors), _zero_inf(want)
    memory = model.selection.memory(scene.cells, usable)
    yield "cells that are scored", np.asarray(memory), data["two_stage.output_memory"]
    scores = class_logits(memory, scene.classes, scene.valid_classes).max(-1)
    yield "scores of cells", np.asarray(scores), data["two_stage.topk_logits_in"]
    chosen = model.selection(scene.cells, scene.classes, pyramid, scene.valid_classes)
    # Ties of rejected cells cross the cut: what is gathered is equal, the numbers of the cells are not.
    yield "best scores", np.asarray(chosen.logits.max(-1)), data["two_stage.topk_values"]
    features = np.take_along_axis(np.asarray(memory), np.asarray(chosen.index)[..., None], 1)
    yield "best cells", features, data["two_stage.hs_enc"]
    yield "first boxes", np.asarray(chosen.boxes), data["two_stage.ref_enc"]
    references = jax.nn.sigmoid(jnp.asarray(data["two_stage.dec_ref_unsig"]))
    yield "first references", np.asarray(chosen.boxes), np.asarray(references)
    tied = np.take_along_axis(np.asarray(anchors), np.asarray(chosen.index)[..., None], 1)
    yield "boxes of the best cells", np.asarray(jax.nn.sigmoid(tied)), data["two_stage.init_box_proposal"]
    yield "queries", np.asarray(model.queries[...]), data["two_stage.dec_tgt"][0]


def _boxes(folder: pathlib.Path, model: UniPose, scene: Crowd) -> Iterator[Case]:
    data, decoder = goldens.arrays(folder, "box_decoder"), model.decoder
    x = jnp.broadcast_to(model.queries[...], (len(scene.cells), *model.queries.shape))
    references = jnp.asarray(goldens.arrays(folder, "two_stage")["two_stage.ref_enc"])
    for i, layer in enumerate(unstack(decoder.layers)[: decoder.box_layers]):
        on_levels = references[:, :, None] * jnp.tile(scene.ratios, 2)[:, None]
        yield f"box layer {i}, references", np.asarray(on_levels), data[f"dec{i}.in.ref_scaled"]
        if f"dec{i}.in.query_sine" in data:
            codes = sine_boxes(on_levels[:, :, 0], x.shape[-1] // 2)
            yield f"box layer {i}, code", np.asarray(codes), data[f"dec{i}.in.query_sine"]
        places = decoder.places(on_levels[:, :, 0])
        yield f"box layer {i}, places", np.asarray(places), data[f"dec{i}.in.query_pos"]
        x = decoder.look(layer, x, references, scene)
        yield f"box layer {i}", np.asarray(x), data[f"dec{i}.out"]
        yield f"box layer {i}, normed", np.asarray(decoder.norm(x)), data[f"dec{i}.hs"]
        # Recorded is the reference that enters a layer.
        yield f"box layer {i}, start", np.asarray(references), data[f"ref{i}"]
        references = decoder.heads.boxes(x, references)
    logits = class_logits(x, scene.classes, scene.valid_classes).max(-1)
    yield "best classes", np.asarray(logits), data["select.logits_max"]
    values, index = choose(decoder, x, scene)
    yield "best boxes, scores", np.asarray(values), data["select.values"]
    yield "best boxes", np.asarray(index), data["select.index"]


def _keypoints(
    folder: pathlib.Path, suffix: str, model: UniPose, scene: Crowd, points: jax.Array, asked: jax.Array
) -> Iterator[Case]:
    data, decoder = goldens.arrays(folder, f"keypoint_decoder{suffix}"), model.decoder
    before = goldens.arrays(folder, "box_decoder")
    x = jnp.asarray(before[f"dec{decoder.box_layers - 1}.out"])
    references = decoder.heads.boxes(x, jnp.asarray(before[f"ref{decoder.box_layers - 1}"]))
    _, chosen = choose(decoder, x, scene)
    yield "chosen instances", np.asarray(chosen), data["select.index"]
    x, references = expand(decoder, x, references, points, chosen, 0)
    scene = dataclasses.replace(scene, sight=of_figures(scene.sight, asked, decoder.instances, faithful=True))
    yield "who sees whom", np.packbits(~np.asarray(scene.sight.inside), axis=-1), data["mask2.packed"]
    tokens = data["tokens"]
    first = f"ref{decoder.box_layers}"
    yield "keypoint references", np.asarray(references), data[first]

    @jax.jit
    def one(model, layer, x, references):
        on_levels = references[:, :, None] * jnp.tile(scene.ratios, 2)[:, None]
        places = model.decoder.places(on_levels[:, :, 0])
        out = model.decoder.look(layer, x, references, scene)
        return on_levels, places, out, model.decoder.norm(out), move(model.decoder, out, references, 0)

    for i, layer in enumerate(unstack(decoder.layers)[decoder.box_layers :], start=decoder.box_layers):
        entered = x
        on_levels, places, x, normed, references = one(model, layer, x, references)
        for name, got in (
            ("in.tgt", entered),
            ("in.query_pos", places),
            ("in.ref_scaled", on_levels),
            ("out", x),
            ("hs", normed),
        ):
            yield f"keypoint layer {i} {name}", np.asarray(got[:, tokens]), data[f"dec{i}.{name}"]
        yield f"keypoint layer {i} moved", np.asarray(references[:, tokens]), data[f"ref{i + 1}"]


def _zero_inf(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0).astype(np.float32)
