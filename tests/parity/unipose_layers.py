# SPDX-License-Identifier: Apache-2.0
"""Box layers and keypoint layers of the pose decoder one by one, on the official outputs of the encoder."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.unipose_inputs import BODY_POINTS
from tests.parity.unipose_model import build, config
from vllm2_jax.decoders.grounding_dino.classes import class_logits
from vllm2_jax.decoders.unipose.keypoint_decoder import choose, expand, move
from vllm2_jax.decoders.unipose.layer import Crowd
from vllm2_jax.decoders.unipose.model import UniPose
from vllm2_jax.decoders.unipose.sight import Sight, of_figures
from vllm2_jax.nn.sine import sine_boxes
from vllm2_jax.nn.stack import unstack


def cases(folder: pathlib.Path, suffixes: Sequence[str] = ("_small", "")) -> Iterator[Case]:
    scene = _scene(folder)
    yield from _boxes(folder, build(folder, config(folder, "")), scene)
    for suffix in suffixes:
        for name, got, want in _keypoints(folder, suffix, build(folder, config(folder, suffix)), scene):
            yield f"{name}{suffix}", got, want


def _scene(folder: pathlib.Path) -> Crowd:
    """What queries look at."""
    data, used = goldens.arrays(folder, "encoder"), goldens.arrays(folder, "inputs")["obj_query_masks"]
    return Crowd(
        jnp.asarray(data["enc_out.memory"]),
        jnp.asarray(data["enc_out.memory_text"]),
        jnp.asarray(~data["enc_in.key_padding_mask"]),
        jnp.asarray(used),
        jnp.asarray(data["enc_in.valid_ratios"]),
        mask=None,
        shapes=tuple((int(h), int(w)) for h, w in data["enc_in.spatial_shapes"]),
        sight=Sight(None, None),
    )


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


def _keypoints(folder: pathlib.Path, suffix: str, model: UniPose, scene: Crowd) -> Iterator[Case]:
    points = jnp.asarray(goldens.arrays(folder, "encoder")["kpt_embed"])
    asked = jnp.asarray(goldens.arrays(folder, "inputs")["kpt_query_masks"][:, :BODY_POINTS])
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
