# SPDX-License-Identifier: Apache-2.0
"""The pose decoder in training: denoising queries, every prediction, every loss, gradients of all weights."""

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import Case, goldens, unipose_criterion, unipose_inputs
from tests.parity.unipose_inputs import Sample
from tests.parity.unipose_model import build, config, forward, inputs, logits
from vllm2_jax.batch import Links, mean
from vllm2_jax.convert import unipose as convert
from vllm2_jax.convert.rules import export
from vllm2_jax.decoders.denoising import Draws, Layout, sees
from vllm2_jax.decoders.unipose import denoising
from vllm2_jax.decoders.unipose.criterion import Criterion
from vllm2_jax.decoders.unipose.model import UniPose, pad, split
from vllm2_jax.decoders.unipose.outputs import Outputs
from vllm2_jax.decoders.unipose.sight import Sight, of_figures
from vllm2_jax.decoders.unipose.targets import read_truth
from vllm2_jax.ops.keypoints import SIGMAS

# A gradient that is 0 but for rounding: biases before a norm of one channel a group, keys before a softmax.
NOTHING = 1e-3


def cases(folder: pathlib.Path) -> Iterator[Case]:
    for suffix in ("_small", ""):
        yield from training(folder, suffix)
    yield from _edges(folder)


def training(folder: pathlib.Path, suffix: str, *, gradients: bool = True) -> Iterator[Case]:
    """One run of the official model in training."""
    for name, got, want in _training(folder, suffix, gradients):
        yield f"train{suffix} {name}", got, want


def _training(folder: pathlib.Path, suffix: str, gradients: bool) -> Iterator[Case]:
    pictures, model = unipose_inputs.samples(folder), build(folder, config(folder, suffix))
    data = goldens.arrays(folder, f"dn{suffix}")
    links, arrays, features = inputs(folder, pictures)
    recorded = {key[5:]: value for key, value in data.items() if key.startswith("draw.")}
    layout, draws = _draws(model, arrays, pictures, recorded)
    yield from _noise(pictures, model, links, arrays, layout, draws, data)

    rest = (links.valid, arrays, features, draws)
    run = jax.value_and_grad(_total, argnums=(0, 1), has_aux=True) if gradients else _total
    found = jax.jit(run, static_argnums=3)(nnx.state(model), links.states, rest, nnx.graphdef(model))
    (total, (terms, outputs)), gradient = found if gradients else (found, None)
    yield from _outputs(folder, suffix, pictures, outputs)
    official = json.loads((folder / f"losses{suffix}.json").read_text())
    yield from unipose_criterion.losses(official, terms)
    yield "total", np.asarray(total), np.float32(official["total"])
    if gradient is not None:
        yield from _gradients(folder, suffix, model, *gradient)


def _total(state: nnx.State, states: jax.Array, rest: tuple, graph: nnx.GraphDef) -> tuple[jax.Array, tuple]:
    valid, arrays, features, draws = rest
    model, truth = nnx.merge(graph, state), read_truth(arrays)
    outputs = forward(model, Links(states, valid), arrays, features, truth, draws)
    sigmas = jnp.asarray(SIGMAS)[arrays["keypoint_ids"]]
    terms = Criterion(model.config.criterion, truth, sigmas)(outputs)
    return sum(mean(value) for value in terms.values()), (terms, outputs)


def _draws(
    model: UniPose, arrays: dict[str, jax.Array], pictures: list[Sample], recorded: dict[str, np.ndarray]
) -> tuple[Layout, Draws]:
    layout = denoising.lay_out(read_truth(arrays), model.config)
    return layout, unipose_inputs.draws(recorded, pictures, layout)


def _noise(
    pictures: list[Sample],
    model: UniPose,
    links: Links,
    arrays: dict[str, jax.Array],
    layout: Layout,
    draws: Draws,
    data: dict[str, np.ndarray],
) -> Iterator[Case]:
    """Denoising queries, and who sees whom with them in front."""
    classes, keypoints = split(links, arrays["keypoint_ids"].shape[1])
    text = model.class_encoder(pad(classes, classes.valid.shape[1] + 1))
    noise = denoising.disturb(layout, draws, read_truth(arrays), text, model.config)
    count = int(data["pad_size"])
    yield "live slots", np.asarray(layout.live.sum(1)), np.full(len(pictures), count)
    yield "groups", np.asarray(layout.groups), np.full(len(pictures), int(data["dn_num"]))
    yield "denoising content", np.asarray(noise.content[:, :count]), data["query_label"]
    boxes = 1 / (1 + np.exp(-data["query_bbox_unsig"].astype(np.float64)))
    yield "denoising boxes", np.asarray(noise.boxes[:, :count]), boxes.astype(np.float32)
    queries, instances = model.config.queries, model.config.instances
    in_boxes = _dense(Sight(sees(layout, queries), None), len(pictures), queries, count)
    packed = data["attn_mask.packed"]
    yield "who sees whom, boxes", np.packbits(~in_boxes, axis=-1), np.stack([packed] * len(pictures))
    asked = pad(keypoints, unipose_inputs.BODY_POINTS).valid
    sight = of_figures(Sight(sees(layout, queries), None), asked, instances, faithful=True)
    in_figures = _dense(sight, len(pictures), instances * (1 + asked.shape[1]), count)
    yield "who sees whom, keypoints", np.packbits(~in_figures, axis=-1), data["attn_mask2.packed"]


def _dense(sight: Sight, rows: int, others: int, count: int) -> np.ndarray:
    """Who sees whom as one mask of all queries, without dead slots."""
    slots = sight.slots
    out = np.zeros((rows, slots + others, slots + others), bool)
    out[:, :slots] = np.asarray(sight.noise)
    size = others // sight.pieces
    for piece in range(sight.pieces):
        at = slice(slots + piece * size, slots + (piece + 1) * size)
        out[:, at, at] = True if sight.inside is None else np.asarray(sight.inside)[piece :: sight.pieces]
    keep = np.r_[:count, slots : slots + others]
    return out[:, keep][:, :, keep]


def _outputs(folder: pathlib.Path, suffix: str, pictures: list[Sample], got: Outputs) -> Iterator[Case]:
    data = goldens.arrays(folder, f"train_outputs{suffix}")
    yield "labels", np.concatenate([picture.labels for picture in pictures]), data["class_index"]
    last = len(got.boxes.logits) + len(got.figures.logits) - 1
    for i in range(last + 1):
        name = "main" if i == last else f"aux{i}"
        after = i - len(got.boxes.logits)
        layer = jax.tree.map(lambda x: x[i], got.boxes) if after < 0 else got.figures  # noqa: B023
        scores, boxes = (
            (layer.logits, layer.boxes) if after < 0 else (layer.logits[after], layer.boxes[after])
        )
        yield from logits(f"{name} classes", np.asarray(scores), data[f"{name}.pred_logits"])
        yield f"{name} boxes", np.asarray(boxes), data[f"{name}.pred_boxes"]
        if after >= 0:
            found = np.asarray(got.figures.keypoints[after] * got.keypoints[:, None, :, None])
            want = data[f"{name}.pred_keypoints"]
            yield f"{name} keypoints", found, unipose_inputs.in_prompt_order(want, pictures, found.shape[2])
        count = data[f"dn_{name}.pred_boxes"].shape[1]
        noise = np.asarray(got.denoising.logits[i, :, :count])
        yield from logits(f"denoising {name} classes", noise, data[f"dn_{name}.pred_logits"])
        yield (
            f"denoising {name} boxes",
            np.asarray(got.denoising.boxes[i, :, :count]),
            data[f"dn_{name}.pred_boxes"],
        )
    yield from logits("cells, classes", np.asarray(got.proposals.logits), data["interm.pred_logits"])
    yield "cells, boxes", np.asarray(got.proposals.boxes), data["interm.pred_boxes"]


def _gradients(
    folder: pathlib.Path, suffix: str, model: UniPose, weights: nnx.State, states: jax.Array
) -> Iterator[Case]:
    named = export(weights, convert.table(model.config))
    data = goldens.arrays(folder, f"grads{suffix}")
    norms = json.loads((folder / f"grad_norms{suffix}.json").read_text())
    classes = unipose_inputs.places(unipose_inputs.samples(folder))[0]
    inputs = goldens.arrays(folder, "inputs")
    for kind, part in (("obj", slice(0, classes)), ("kpt", slice(classes, None))):
        found = np.asarray(states[:, part])
        # Free places hold zeros in the official code; what reaches them reaches no language model.
        used = inputs[f"{kind}_query_masks"][..., None, None]
        room = np.zeros_like(data[f"{kind}_querys"])
        room[:, : found.shape[1]] = found
        yield f"grad {kind}_querys", room, data[f"{kind}_querys"] * used
    for key, want in data.items():
        if key.startswith("param."):
            yield f"grad {key[6:]}", named[key[6:]], want
    for key, want in norms.items():
        got = np.sqrt(np.square(named[key].astype(np.float64)).sum())
        if want < NOTHING:
            yield f"no gradient of {key}", np.array(got < NOTHING), np.array(True)
        else:
            yield f"grad norm {key}", got, np.array(want)


def _edges(folder: pathlib.Path) -> Iterator[Case]:
    """Pictures without objects, a whole batch of them, and one picture without classes."""
    official = json.loads((folder / "edge_small.json").read_text())
    model = build(folder, config(folder, "_small"))
    first, *others = pictures = unipose_inputs.samples(folder)
    empty = {
        "second_empty": [first, *(picture.without_objects() for picture in others)],
        "first_empty": [first.without_objects(), *others],
        "all_empty": [picture.without_objects() for picture in pictures],
    }
    links, arrays, features = inputs(folder, pictures)
    run = jax.jit(_total, static_argnums=3)
    for name, some in empty.items():
        found = {key.split(".")[1] + key[0]: np.array(x) for key, x in official[name]["draws"].items()}
        names = {"rand0": "label_p", "randint1": "new_label", "randint2": "box_sign01", "rand3": "box_part"}
        recorded = {names[key]: value for key, value in found.items()}
        these = unipose_inputs.targets(folder, some)
        _, draws = _draws(model, these, some, recorded)
        rest = (links.valid, these, features, draws)
        total, (terms, _) = run(nnx.state(model), links.states, rest, nnx.graphdef(model))
        weights = json.loads((folder / "losses_small.json").read_text())["weights"]
        for case, got, want in unipose_criterion.losses(official[name] | {"weights": weights}, terms):
            if np.isfinite(want):
                yield f"{name} {case}", got, want
            else:  # the official sum of -inf and of zeros
                yield f"{name} {case} is a number", np.isfinite(got), np.array(True)
        yield f"{name} total is a number", np.isfinite(np.asarray(total)), np.array(True)
    # The official code gives NaN for this row and, through a maximum over all rows, for its neighbours.
    nothing = links.replace(valid=links.valid.at[0, : unipose_inputs.places(pictures)[0]].set(False))
    right = build(folder, config(folder, "_small", faithful=False))
    boxes = np.asarray(jax.jit(forward)(right, nothing, arrays, features).figures.boxes[-1])
    spoilt = official["sample_without_object_query"]
    yield "all rows were spoilt", np.array([spoilt[f"nan_in_sample{b}"] for b in (0, 1)]), np.ones(2, bool)
    yield "no row without classes spoils any", np.isnan(boxes).any((1, 2)), np.zeros(len(pictures), bool)
