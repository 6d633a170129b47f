# SPDX-License-Identifier: Apache-2.0
"""From pictures and links to predictions: the padded batch, each picture alone, and the two-stage part."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from vllm2_jax.decoders.grounding_dino.classes import class_logits
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.outputs import mask_logits
from vllm2_jax.ops.levels import proposals


def cases(folder: pathlib.Path) -> Iterator[Case]:
    model = gd.build(folder)
    inputs = goldens.arrays(folder, "inputs")
    arguments = (gd.links(inputs), gd.pixels(inputs), jnp.asarray(inputs["pixel_mask"]))
    yield from _two_stage(folder, model, arguments)
    yield from _inference(folder, model, arguments)
    yield from _alone(folder, model, inputs)


def _two_stage(folder: pathlib.Path, model: GroundingDINO, arguments: tuple) -> Iterator[Case]:
    data = goldens.arrays(folder, "two_stage")
    selection = model.selection

    def run(links, pixels, inside):
        features = model.backbone(pixels)
        picture = model.levels(features, inside)
        cells, classes = model.encoder(picture, model.class_encoder(links), links.valid)
        anchors, usable = proposals(picture.masks)
        memory = selection.memory(cells, usable)
        logits = class_logits(memory, classes, links.valid)
        chosen = selection(cells, classes, picture, links.valid)
        mask_features = model.mask_features(features[0], cells, picture.shapes)
        masks = mask_logits(model.query_masks(model.learned(len(cells))), mask_features)
        boxes = selection.box_head(memory) + anchors
        return cells, classes, anchors, memory, logits, boxes, chosen, masks

    found = jax.device_get(jax.jit(run)(*arguments))
    cells, classes, anchors, memory, logits, boxes, chosen, masks = found
    yield "encoded cells", cells, data["encoder_vision"]
    yield "encoded classes", classes, data["encoder_text"]
    yield from _finite("proposals", anchors, data["output_proposals"])
    yield "memory", memory[:, : data["object_query_head"].shape[1]], data["object_query_head"]
    yield "memory, whole", gd.stats(memory), data["object_query_stats"]
    yield from gd.logits("logits of all cells", logits, data["class_logits"])
    yield from _finite("box logits of all cells", boxes, data["coord_logits"])
    yield "chosen cells", chosen.index, data["topk_index"]
    yield "scores of chosen cells", chosen.logits.max(-1), data["topk_score"]
    yield "boxes of chosen cells", chosen.boxes, data["init_reference_points"]
    yield "masks of learned queries", masks[:, :2], data["query_mask_logits_first2"]
    yield "masks of learned queries, whole", gd.stats(masks), data["query_mask_logits_stats"]
    yield from _wide(data, model)


def _wide(data: dict[str, np.ndarray], model: GroundingDINO) -> Iterator[Case]:
    """A map so wide that cells come too close to the border."""
    inside, shapes = ~data["wide/padding_mask"], data["wide/spatial_shapes"]
    ends = np.cumsum(shapes.prod(1))
    masks = [
        jnp.asarray(inside[:, end - h * w : end].reshape(-1, h, w))
        for end, (h, w) in zip(ends, shapes, strict=True)
    ]
    cells = gd.probe((len(inside), int(ends[-1]), model.config.width), 1.1)
    anchors, usable = proposals(masks)
    memory = np.asarray(model.selection.memory(jnp.asarray(cells), usable))
    yield from _finite("proposals of a wide map", np.asarray(anchors), data["wide/output_proposals"])
    head = data["wide/object_query_head"]
    yield "memory of a wide map", memory[:, : head.shape[1]], head
    yield "memory of a wide map, whole", gd.stats(memory), data["wide/object_query_stats"]


def _inference(folder: pathlib.Path, model: GroundingDINO, arguments: tuple) -> Iterator[Case]:
    data = goldens.arrays(folder, "inference")

    def run(links, pixels, inside):
        out = model.look(links, pixels, inside)
        scene, chosen, _ = model.encode(links, pixels, inside)
        steps = model.decoder(model.learned(len(pixels)), chosen.boxes, scene)
        masks = mask_logits(out.layers.masks[-1], out.mask_features)
        return out, model.class_encoder(links), masks, steps

    out, classes, masks, (hidden, boxes) = jax.device_get(jax.jit(run)(*arguments))
    features = gd.channels_first(out.mask_features)
    yield "classes", classes, data["text_query_projected"]
    yield "mask features", features[0], data["mask_features_image0"]
    yield "mask features, whole", gd.stats(features), data["mask_features_stats"]
    yield "first boxes", out.encoder.boxes, data["init_reference_points"]
    yield "queries after every layer", hidden.swapaxes(0, 1), data["intermediate_hidden_states"]
    yield "boxes after every layer", boxes[1:].swapaxes(0, 1), data["intermediate_reference_points"]
    yield from gd.logits("logits", out.layers.logits[-1], data["logits"])
    yield "boxes", out.layers.boxes[-1], data["pred_boxes"]
    yield "masks", masks, data["pred_masks"]


def _alone(folder: pathlib.Path, model: GroundingDINO, inputs: dict[str, np.ndarray]) -> Iterator[Case]:
    """Each picture with its own classes and padding only."""
    data = goldens.arrays(folder, "inference")

    def run(links, pixels, inside):
        out = model.look(links, pixels, inside)
        last = jax.tree.map(lambda x: x[-1], out.layers)
        return last.logits, last.boxes, mask_logits(last.masks, out.mask_features)

    for i, count in enumerate(goldens.config(folder)["n_classes"]):
        h, w = data[f"single{i}/size"]
        one = {
            "pixel_values": inputs["pixel_values"][i : i + 1, :, :h, :w],
            "text_query": inputs["text_query"][i : i + 1, :count],
            "text_query_masks": inputs["text_query_masks"][i : i + 1, :count],
        }
        inside = jnp.asarray(one["pixel_values"][:, 0] != 0)
        logits, boxes, masks = jax.device_get(jax.jit(run)(gd.links(one), gd.pixels(one), inside))
        yield f"picture {i} alone: logits", logits, data[f"single{i}/logits"]
        yield f"picture {i} alone: boxes", boxes, data[f"single{i}/pred_boxes"]
        yield f"picture {i} alone: masks", gd.stats(masks), data[f"single{i}/pred_masks_stats"]


def _finite(name: str, got: np.ndarray, want: np.ndarray) -> list[Case]:
    """Infinities at the same places, the rest alike."""
    there = np.isfinite(want)
    return [
        (f"{name}: which", np.isfinite(got), there),
        (name, np.where(there, got, 0), np.where(there, want, 0)),
    ]
