# SPDX-License-Identifier: Apache-2.0
"""The grounding decoder from recorded cells on: what it chooses, predicts and loses, and the gradients.

No picture is looked at, so there are no masks here but the recorded ones; `training` compares the rest.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from tests.parity import grounding_dino_targets as given
from tests.parity import grounding_dino_training as training
from tests.parity.grounding_dino_deformable import shapes_of
from tests.parity.grounding_dino_units import masks_of
from vllm2_jax.decoders.grounding_dino import criterion as criteria
from vllm2_jax.decoders.grounding_dino import denoising
from vllm2_jax.decoders.grounding_dino.decoder import Scene
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.pyramid import Pyramid
from vllm2_jax.decoders.grounding_dino.selection import Chosen

# Only what comes after the cells has its whole gradient.
TRAINED = ("model.decoder.", "model.enc_output", "model.encoder_output_bbox_embed.", "bbox_embed.")


def cases(folder: pathlib.Path) -> Iterator[Case]:
    model, inputs, data = gd.build(folder), given.load(folder), goldens.arrays(folder, "train")
    cells = goldens.arrays(folder, "two_stage")
    masks = masks_of(folder, shapes_of(cells["spatial_shapes"]))
    vision, text = jnp.asarray(cells["encoder_vision"]), jnp.asarray(cells["encoder_text"])
    picture, links = Pyramid(vision, jnp.zeros_like(vision), masks), gd.links(inputs)
    yield "cells outside the picture", np.asarray(~picture.valid), cells["vision_padding_mask"]
    rows = len(inputs["pixel_mask"])
    blank = jnp.zeros((*inputs["pixel_mask"].shape, 3))

    def encoded(model: GroundingDINO) -> tuple[Scene, Chosen, jax.Array]:
        chosen = model.selection(vision, text, picture, links.valid)
        scene = Scene(vision, text, picture.valid, links.valid, picture.ratios, None, picture.shapes)
        return scene, chosen, jnp.zeros((rows, 1, 1, model.config.mask_width))

    truth = given.truth(inputs, list(range(rows)), masks=False)
    scene = (links, blank, jnp.asarray(inputs["pixel_mask"]), truth)
    layout = denoising.lay_out(truth, model.config)
    recorded = tuple(data[f"rand/{name}"] for name in training.NAMES)
    draws = given.noise(recorded, layout, model.config.criterion.label_noise)
    yield from training.denoising_queries(model, scene, layout, draws, data)

    step = training.Step(model, encoded)
    points = criteria.draw(jax.random.key(0), rows, model.config.criterion)  # of no effect
    found, gradients = step(scene, draws, points, sum(training.KINDS.values(), ()))
    without = {name: value for name, value in data.items() if "mask" not in name}
    yield from training.predictions(step.seen, layout, without)
    want = {k[7:]: x for k, x in goldens.arrays(folder, "train_variants").items() if k.startswith("nomask/")}
    yield from training.losses(model.config.criterion, want["loss_names"], want["loss_values"], found)
    yield "total", found["total"], want["total"]
    ours = np.array([str(name).startswith(TRAINED) for name in data["grad_stats/names"]])
    stated = (data["grad_stats/names"], want["grad_l2"], want["grad_dot"])
    yield from training.gradient_norms("decoding", *(x[ours] for x in stated), gradients)
