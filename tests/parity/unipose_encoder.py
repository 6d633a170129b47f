# SPDX-License-Identifier: Apache-2.0
"""Encoder and selection of the pose decoder, block by block, on the official inputs.

Classes and keypoints have all the places that the official code gives them here.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, unipose_inputs
from tests.parity.unipose_model import build, config, maps
from vllm2_jax.decoders.grounding_dino.classes import class_logits, positions, visible
from vllm2_jax.decoders.grounding_dino.pyramid import Pyramid
from vllm2_jax.decoders.unipose.model import UniPose, split
from vllm2_jax.nn.sine import sine
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
    yield from _selection(folder, model, pyramid, classes.valid)


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


def _selection(folder: pathlib.Path, model: UniPose, pyramid: Pyramid, valid: jax.Array) -> Iterator[Case]:
    data, before = goldens.arrays(folder, "two_stage"), goldens.arrays(folder, "encoder")
    cells, classes = (jnp.asarray(before[f"enc_out.memory{name}"]) for name in ("", "_text"))
    anchors, usable = levels.proposals(pyramid.masks)
    want = data["two_stage.proposals_unsig"]
    yield "usable cells", np.asarray(usable), np.isfinite(want).all(-1)
    yield "proposals", _zero_inf(anchors), _zero_inf(want)
    memory = model.selection.memory(cells, usable)
    yield "cells that are scored", np.asarray(memory), data["two_stage.output_memory"]
    scores = class_logits(memory, classes, valid).max(-1)
    yield "scores of cells", np.asarray(scores), data["two_stage.topk_logits_in"]
    chosen = model.selection(cells, classes, pyramid, valid)
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


def _zero_inf(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0).astype(np.float32)
