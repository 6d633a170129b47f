# SPDX-License-Identifier: Apache-2.0
"""Costs, assignments and the losses of classes and boxes, from recorded official predictions."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from tests.parity import grounding_dino_targets as given
from vllm2_jax.decoders.grounding_dino.costs import costs
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.ops.boxes import giou
from vllm2_jax.ops.matching import match


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data, train = goldens.arrays(folder, "matcher"), goldens.arrays(folder, "train")
    inputs, config = given.load(folder), gd.config(folder)
    rows = len(inputs["pixel_mask"])
    truth = given.truth(inputs, list(range(rows)))

    @jax.jit
    def assign(logits: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        cost = costs(logits, boxes, truth, config.criterion)
        return cost, match(cost, truth.valid)

    for name in given.set_names(config.decoder_layers)[: 1 + config.decoder_layers]:
        logits = train[f"pred/{name}/logits"]
        found = jnp.asarray(np.where(np.isfinite(logits), logits, ABSENT))
        cost, query = map(np.asarray, assign(found, jnp.asarray(train[f"pred/{name}/boxes"])))
        for b, count in enumerate(truth.counts):
            yield f"cost {name} row {b}", cost[b, :, :count], data[f"{name}/{b}/cost"]
            want = data[f"{name}/{b}/query"][np.argsort(data[f"{name}/{b}/gt"])]
            yield f"assignment {name} row {b}", query[b, :count], want
    pair = [jnp.asarray(data[f"giou/boxes{i}"]) for i in (1, 2)]
    yield "giou", np.asarray(giou(*pair)), data["giou/value"]
