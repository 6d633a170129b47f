# SPDX-License-Identifier: Apache-2.0
"""Small functions of the grounding decoder: positions, references, proposals, overlaps, assignments."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.grounding_dino_deformable import shapes_of
from vllm2_jax.nn.sine import sine, sine_2d, sine_boxes
from vllm2_jax.ops import levels
from vllm2_jax.ops.boxes import giou, inverse_sigmoid
from vllm2_jax.ops.matching import match


def cases(folder: pathlib.Path) -> Iterator[Case]:
    with jax.default_matmul_precision("highest"):
        yield from _positions(folder)
        yield from _matching(folder)
    yield from _proposals(folder)


def masks_of(folder: pathlib.Path, shapes: levels.Shapes) -> list[jax.Array]:
    """The golden pixel mask at the size of every level."""
    mask = jnp.asarray(goldens.arrays(folder, "inputs")["pixel_mask"])
    return jax.jit(lambda mask: [levels.shrink(mask, shape) for shape in shapes])(mask)


def _positions(folder: pathlib.Path) -> Iterator[Case]:
    data, sizes = goldens.arrays(folder, "pos_embed"), goldens.config(folder)["gdino"]
    width, temperature = sizes["d_model"], float(sizes["positional_embedding_temperature"])
    shapes = shapes_of(data["spatial_shapes"])
    masks = masks_of(folder, shapes)
    maps = [sine_2d(mask, width, temperature_h=temperature, temperature_w=temperature) for mask in masks]
    for i, found in enumerate(maps):
        if (name := f"vision_pos_level{i}") in data:
            yield f"positions of level {i}", np.asarray(found).transpose(0, 3, 1, 2), data[name]
    level = goldens.weights(folder, "weights", "model.level_embed")[""]
    together = levels.flatten([found + level[i] for i, found in enumerate(maps)])
    yield "positions of cells", np.asarray(together), data["vision_pos_flat_plus_level_embed"]
    yield "padding", np.asarray(~levels.flatten(masks)), data["vision_padding_mask"]
    ratios = levels.valid_ratios(masks)
    yield "valid ratios", np.asarray(ratios), data["valid_ratios"]
    found = levels.references(shapes, ratios)
    yield "references", np.asarray(found), data["encoder_reference_points"]
    ids = jnp.asarray(data["text_position_ids"], jnp.int32)
    yield "positions of classes", np.asarray(sine(ids, width)), data["text_position_embedding"]
    boxes = sine_boxes(jnp.asarray(data["query_boxes"]), width // 2)
    yield "positions of boxes", np.asarray(boxes), data["query_sine_embed"]
    logits = inverse_sigmoid(jnp.asarray(data["inverse_sigmoid_in"]), 1e-5)
    yield "inverse sigmoid", np.asarray(logits), data["inverse_sigmoid_out"]


def _proposals(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "two_stage")
    shapes = shapes_of(data["spatial_shapes"])
    yield from goldens.finite(
        "proposals", levels.proposals(masks_of(folder, shapes))[0], data["output_proposals"]
    )
    valid, at, masks = ~data["wide/padding_mask"], 0, []
    for h, w in shapes_of(data["wide/spatial_shapes"]):
        masks.append(jnp.asarray(valid[:, at : at + h * w].reshape(-1, h, w)))
        at += h * w
    yield from goldens.finite("proposals, wide", levels.proposals(masks)[0], data["wide/output_proposals"])


def _matching(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "matcher")
    a, b = jnp.asarray(data["giou/boxes1"]), jnp.asarray(data["giou/boxes2"])
    yield "giou", np.asarray(giou(a, b)), data["giou/value"]
    for name in [name.removesuffix("/cost") for name in data if name.endswith("/cost")]:
        cost = jnp.asarray(data[f"{name}/cost"])[None]
        # A place without target shows that padding changes nothing.
        padded = jnp.pad(cost, ((0, 0), (0, 0), (0, 1)), constant_values=-99.0)
        valid = jnp.arange(padded.shape[2])[None] < cost.shape[2]
        found = np.asarray(match(padded, valid))[0, :-1]
        yield f"assignment {name}", found[data[f"{name}/gt"]], data[f"{name}/query"].astype(found.dtype)
