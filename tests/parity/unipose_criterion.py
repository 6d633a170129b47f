# SPDX-License-Identifier: Apache-2.0
"""Costs, assignments and every loss term of the pose decoder, from recorded official outputs."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, unipose_inputs
from vllm2_jax.batch import mean
from vllm2_jax.decoders import denoising
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.decoders.unipose import costs
from vllm2_jax.decoders.unipose.config import CriterionConfig
from vllm2_jax.decoders.unipose.criterion import Criterion
from vllm2_jax.decoders.unipose.outputs import Boxes, Figures, Outputs
from vllm2_jax.decoders.unipose.targets import read_picture, read_truth
from vllm2_jax.ops.keypoints import SIGMAS
from vllm2_jax.ops.matching import match

# Official name of a loss -> ours. A batch without objects has "class" for "ce", which no weight knows.
TERMS = {
    "ce": "class",
    "class": "class",
    "bbox": "box",
    "giou": "giou",
    "keypoints": "keypoints",
    "oks": "oks",
}


def config(folder: pathlib.Path) -> CriterionConfig:
    """Coefficients of the golden run."""
    c = goldens.config(folder)["config"]
    return CriterionConfig(
        class_weight=c["cls_loss_coef"],
        box_weight=c["bbox_loss_coef"],
        giou_weight=c["giou_loss_coef"],
        keypoint_weight=c["keypoint_loss_coef"],
        class_cost=c["set_cost_class"],
        box_cost=c["set_cost_bbox"],
        giou_cost=c["set_cost_giou"],
        keypoint_cost=c["set_cost_keypoint"],
        oks_cost=c["set_cost_oks"],
        denoising=c["dn_number"],
        label_noise=c["dn_label_noise_ratio"],
        labelbook=min(c["dn_labelbook_size"], goldens.config(folder)["padded_queries_to"]),
        box_noise=c["dn_box_noise_scale"],
    )


def cases(folder: pathlib.Path, suffixes: Sequence[str] = ("_small", "")) -> Iterator[Case]:
    for suffix in suffixes:
        for name, got, want in _one(folder, suffix):
            yield f"unipose criterion{suffix} {name}", got, want


def _one(folder: pathlib.Path, suffix: str) -> Iterator[Case]:
    pictures = unipose_inputs.samples(folder)
    arrays = unipose_inputs.targets(folder, pictures)
    found, sigmas = read_truth(arrays), jnp.asarray(SIGMAS)[read_picture(arrays).keypoint_ids]
    criterion = Criterion(config(folder), found, sigmas)
    outputs = recorded(folder, suffix, pictures)
    yield from _matching(folder, suffix, criterion, outputs)

    most = found.counts.max()
    layout = denoising.lay_out(
        found.counts, jnp.full_like(found.counts, most), config(folder).denoising, found.valid.shape[1]
    )
    terms = jax.jit(lambda outputs: criterion(outputs))(outputs.replace(layout=layout))
    yield from losses(json.loads((folder / f"losses{suffix}.json").read_text()), terms)


def losses(official: dict, terms: dict) -> Iterator[Case]:
    """Every term, multiplied by its coefficient, and their sum."""
    for name, value in official["losses"].items():
        _, term, *rest = name.split("_", 2)
        ours = "_".join([TERMS[term], *rest])
        weight = official["weights"].get(name, 1.0)
        yield f"loss {ours}", np.asarray(mean(terms[ours])), np.float32(weight * value)
    yield "number of losses", np.array(len(terms)), np.array(len(official["losses"]))
    total = sum(mean(value) for value in terms.values())
    yield "loss total", np.asarray(total), np.float32(official["total"])


def recorded(folder: pathlib.Path, suffix: str, pictures: list[unipose_inputs.Sample]) -> Outputs:
    """The official outputs in our form."""
    data = goldens.arrays(folder, f"train_outputs{suffix}")
    sizes = goldens.config(folder)["config"]
    box_layers, last = sizes["num_box_decoder_layers"], sizes["dec_layers"] - 1
    classes = unipose_inputs.classes(pictures)
    names = [f"aux{i}" for i in range(last)] + ["main"]

    def logits(name: str) -> np.ndarray:
        x = data[f"{name}.pred_logits"]
        room = np.full((*x.shape[:2], classes.shape[1]), ABSENT, np.float32)
        room[..., : x.shape[2]] = np.where(np.isfinite(x), x, ABSENT)
        return room

    def boxes(names: list[str]) -> Boxes:
        return Boxes(
            jnp.asarray(np.stack([logits(name) for name in names])),
            jnp.asarray(np.stack([data[f"{name}.pred_boxes"] for name in names])),
        )

    # Slots beyond the official ones are dead: they hold garbage that must not count.
    noise = boxes([f"dn_{name}" for name in names])
    room = denoising.slots(sizes["dn_number"], 1 + max(len(p.labels) for p in pictures))
    more = ((0, 0), (0, 0), (0, room - noise.boxes.shape[2]), (0, 0))
    noise = jax.tree.map(lambda x: jnp.pad(x, more, constant_values=0.5), noise)
    figures = boxes(names[box_layers:])
    points = unipose_inputs.places(pictures)[1]
    keypoints = [
        unipose_inputs.in_prompt_order(data[f"{name}.pred_keypoints"], pictures, points)
        for name in names[box_layers:]
    ]
    return Outputs(
        proposals=jax.tree.map(lambda x: x[0], boxes(["interm"])),
        boxes=boxes(names[:box_layers]),
        figures=Figures(figures.logits, figures.boxes, jnp.asarray(np.stack(keypoints))),
        denoising=noise,
        layout=None,
        classes=classes,
        keypoints=unipose_inputs.keypoints(pictures),
    )


def _matching(folder: pathlib.Path, suffix: str, criterion: Criterion, outputs: Outputs) -> Iterator[Case]:
    """The cost matrix and the assignment of every set of predictions."""
    data = goldens.arrays(folder, f"matcher{suffix}")
    box_layers = len(outputs.boxes.logits)
    layers = box_layers + len(outputs.figures.logits)
    for name in sorted({key.split(".")[0] for key in data}):
        number = layers - 1 if name == "main" else int(name[3:]) if name.startswith("aux") else -1
        if number < box_layers:
            sets = outputs.proposals if number < 0 else jax.tree.map(lambda x: x[number], outputs.boxes)  # noqa: B023
            cost = costs.box_costs(sets.logits, sets.boxes, criterion.truth, criterion.config)
        else:
            one = jax.tree.map(lambda x: x[number - box_layers], outputs.figures)  # noqa: B023
            cost = costs.figure_costs(
                one.logits, one.boxes, one.keypoints, criterion.truth, criterion.sigmas, criterion.config
            )
        query = match(cost, criterion.truth.valid)
        for b, count in enumerate(criterion.truth.counts):
            want = data[f"{name}.b{b}.cost"]
            yield f"cost {name} row {b}", np.asarray(cost[b, :, :count]), want
            order = np.argsort(data[f"{name}.b{b}.col"])
            yield f"assignment {name} row {b}", np.asarray(query[b, :count]), data[f"{name}.b{b}.row"][order]
