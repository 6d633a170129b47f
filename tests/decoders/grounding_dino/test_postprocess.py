# SPDX-License-Identifier: Apache-2.0
"""Answers of the grounding decoder from made-up predictions, query by query."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.decoders.grounding_dino.outputs import ABSENT, Outputs, Predictions
from vllm2_jax.decoders.grounding_dino.postprocess import best, class_maps

ROWS, QUERIES, CLASSES, WIDTH = 2, 7, 3, 5


@pytest.fixture
def outputs():
    rng = np.random.default_rng(0)

    def made(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    logits = made(2, ROWS, QUERIES, CLASSES).at[:, 1, :, 2].set(ABSENT)  # the second row has two classes
    boxes = jax.nn.sigmoid(made(2, ROWS, QUERIES, 4))
    layers = Predictions(logits, boxes, made(2, ROWS, QUERIES, WIDTH))
    first = jax.tree.map(lambda x: x[0], layers)
    return Outputs(layers, None, first, made(ROWS, 4, 6, WIDTH), jnp.array([[1, 1, 1], [1, 1, 0]], bool))


def test_pairs_bring_their_boxes_and_masks(outputs):
    found = jax.jit(best, static_argnums=1)(outputs, 10)
    logits, boxes, masks = (np.asarray(x[-1]) for x in jax.tree.leaves(outputs.layers))
    for row in range(ROWS):
        order = np.argsort(-logits[row].ravel(), kind="stable")[:10]
        query, label = np.divmod(order, CLASSES)
        np.testing.assert_array_equal(found.labels[row], label)
        np.testing.assert_array_equal(found.boxes[row], boxes[row, query])
        want = np.einsum("qm,hwm->qhw", masks[row, query], outputs.mask_features[row])
        np.testing.assert_allclose(found.masks[row], want, atol=1e-5)
    assert (np.diff(found.scores) <= 0).all() and (found.scores > 0).all()
    everything = best(outputs, 1000)
    assert everything.scores.shape == (ROWS, QUERIES * CLASSES)
    assert (np.asarray(everything.scores[1]) > 0).sum() == QUERIES * 2


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_maps_of_classes(outputs, chunk):
    last = jax.tree.map(lambda x: x[-1], outputs.layers)
    found = class_maps(last, outputs.mask_features, chunk=chunk)
    masks = jnp.einsum("bqm,bhwm->bqhw", last.masks, outputs.mask_features)
    want = jnp.einsum("bqk,bqhw->bkhw", jax.nn.sigmoid(last.logits), jax.nn.sigmoid(masks))
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert not np.asarray(found[1, 2]).any()


def test_what_is_not_read_is_not_computed(outputs):
    def flops(read):
        # Only an array is an argument: descriptions of arguments have no shapes that annotations accept.
        def program(features):
            return read(best(dataclasses.replace(outputs, mask_features=features), 10))

        return jax.jit(program).lower(outputs.mask_features).compile().cost_analysis().get("flops", 0)

    assert flops(lambda found: found.boxes) < 0.1 * flops(lambda found: found)
