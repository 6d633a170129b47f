# SPDX-License-Identifier: Apache-2.0
"""Denoising queries: what they hold, what they may see, and that rows do not depend on each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.decoders.grounding_dino.test_criterion import make_truth
from vllm2_jax.decoders.grounding_dino import denoising
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig, GroundingDINOConfig

CONFIG = GroundingDINOConfig(queries=7, width=32, criterion=CriterionConfig(denoising=6))
CLASSES = jnp.array([[True, True, False, False], [False] * 4, [True, False, True, True]])


def make(truth, config=CONFIG, key=0):
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(len(CLASSES), 4, 32)).astype(np.float32))
    layout = denoising.lay_out(truth, config)
    draws = denoising.draw(jax.random.key(key), layout, CLASSES, config)
    return layout, draws, denoising.disturb(layout, draws, truth, vectors, config), vectors


def test_content_is_the_class_the_box_has_or_a_random_one():
    truth = make_truth()
    layout, draws, noise, vectors = make(truth)
    assert noise.content.shape == (3, 12, 32) and noise.mask.shape == (3, 19, 19)
    for b, d in np.ndindex(3, 12):
        if not layout.real[b, d]:
            assert not noise.content[b, d].any() and (noise.boxes[b, d] == 0.5).all()
            continue
        label = draws.label[b, d] if draws.flip[b, d] < 0.25 else truth.labels[b, layout.target[b, d]]
        np.testing.assert_array_equal(noise.content[b, d], vectors[b, label])
    assert ((noise.boxes > 0) & (noise.boxes < 1)).all()


def test_random_labels_are_classes_of_the_row():
    for key in range(5):
        draws = make(make_truth(), key=key)[1]
        assert set(np.unique(draws.label[0])) <= {0, 1}
        assert set(np.unique(draws.label[2])) <= {0, 2, 3}


def test_queries_do_not_see_the_truth():
    layout, _, noise, _ = make(make_truth())
    mask = np.asarray(noise.mask)
    assert not mask[:, 12:, :12].any() and mask[:, 12:, 12:].all() and mask[:, :12, 12:].all()
    for b in range(3):
        group = np.asarray(layout.group[b])
        np.testing.assert_array_equal(mask[b, :12, :12], group[:, None] == group)


def test_rows_depend_on_each_other_only_if_faithful():
    few, many = make_truth(counts=(1, 0, 1)), make_truth(counts=(1, 0, 3))
    ours = [denoising.lay_out(truth, CONFIG) for truth in (few, many)]
    official = [denoising.lay_out(truth, dataclasses.replace(CONFIG, faithful=True)) for truth in (few, many)]
    assert ours[0].groups[0] == ours[1].groups[0] == 6
    assert (official[0].groups[0], official[1].groups[0]) == (6, 2)
    assert not ours[1].live[1].any() and official[1].live[1].all()  # the row without objects
