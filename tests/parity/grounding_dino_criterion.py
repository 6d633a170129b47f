# SPDX-License-Identifier: Apache-2.0
"""The loss terms of classes and boxes, and of the answer's masks, from recorded official predictions."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from tests.parity import grounding_dino_targets as given
from tests.parity.grounding_dino_training import assignment, losses
from vllm2_jax.batch import mean
from vllm2_jax.decoders.denoising import Layout
from vllm2_jax.decoders.grounding_dino import denoising
from vllm2_jax.decoders.grounding_dino.criterion import Criterion
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT, Outputs, Predictions

Arrays = dict[str, np.ndarray]


def cases(folder: pathlib.Path) -> Iterator[Case]:
    inputs, data, config = given.load(folder), goldens.arrays(folder, "train"), gd.config(folder)
    truth = given.truth(inputs, list(range(len(inputs["pixel_mask"]))))
    layout, names = denoising.lay_out(truth, config), given.set_names(config.decoder_layers)
    masks = jnp.asarray(goldens.arrays(folder, "inference")["pred_masks"])
    outputs = recorded(data, names, masks, jnp.asarray(inputs["text_query_masks"]), layout)
    points = given.mask_points(
        data, names, assignment(outputs, truth, config.criterion), np.asarray(truth.valid), layout
    )
    terms = jax.jit(lambda outputs: Criterion(config.criterion, truth)(outputs, points, layout))(outputs)

    def there(name: str) -> bool:
        return not name.startswith(("mask", "dice")) or "_" not in name

    stated = [there(str(name).removeprefix("loss_")) for name in data["loss/names"]]
    found = {name: np.asarray(mean(value)) for name, value in terms.items() if there(name)}
    yield from losses(config.criterion, data["loss/names"][stated], data["loss/values"][stated], found)


def recorded(data: Arrays, names: list[str], masks: jax.Array, classes: jax.Array, layout: Layout) -> Outputs:
    """The official predictions in our form. All sets get the answer's masks, which alone are recorded.

    A query's mask is its product with the features: as many channels as queries let it be any mask.
    """
    rows, queries = masks.shape[:2]

    def one(name: str) -> Predictions:
        logits, boxes = data[f"pred/{name}/logits"], jnp.asarray(data[f"pred/{name}/boxes"])
        found = jnp.asarray(np.where(np.isfinite(logits), logits, ABSENT))
        if not name.startswith("dn_"):
            return Predictions(found, boxes, jnp.broadcast_to(jnp.eye(queries), (rows, queries, queries)))
        # Slots beyond the official ones are dead: they hold garbage that must not count.
        more = ((0, 0), (0, layout.live.shape[1] - boxes.shape[1]), (0, 0))
        found, boxes = (jnp.pad(x, more, constant_values=0.5) for x in (found, boxes))
        return Predictions(found, boxes, jnp.zeros((*boxes.shape[:2], queries)))

    def stacked(names: list[str]) -> Predictions:
        return jax.tree.map(lambda *xs: jnp.stack(xs), *map(one, names))

    noisy = [name for name in names if name.startswith("dn_")]
    layers = [name for name in names[1:] if name not in noisy]
    return Outputs(stacked(layers), stacked(noisy), one(names[0]), jnp.moveaxis(masks, 1, -1), classes)
