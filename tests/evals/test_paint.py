# SPDX-License-Identifier: Apache-2.0
"""The judge of painted scenes, and what its verdicts add up to."""

import numpy as np
import pytest

from data_pipelines.datasets.synthetic import load
from launch.judge import scene_judge
from vllm2_jax.evals.paint import Edit, Thing, agreement, edits


@pytest.mark.parametrize("level, size", [("one", 32), ("one", 48), ("close", 16), ("close", 32)])
def test_the_judge_names_what_scenes_hold(level, size):
    source = load(task="t2i", tile_size=size, level=level, decoder_size=size, split="heldout", seed=3)
    judge = scene_judge(size)
    for i in range(60):
        example = source[i]
        picture = example.targets["stable_diffusion"]["image"]
        assert judge(picture) == Thing(*example.meta["things"][0]), i


def test_the_judge_bears_some_noise_and_blur():
    source = load(task="t2i", tile_size=32, level="one", decoder_size=32, split="heldout", seed=4)
    judge, rng, right = scene_judge(32), np.random.default_rng(0), 0
    for i in range(60):
        picture = source[i].targets["stable_diffusion"]["image"].astype(float)
        picture = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) / 3
        noisy = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
        right += judge(noisy) == Thing(*source[i].meta["things"][0])
    assert right >= 54


def test_nothing_stands_out_of_an_empty_picture():
    assert scene_judge(32)(np.full((32, 32, 3), 170, np.uint8)) == Thing("", "")


def test_agreement_counts_shape_colour_and_both():
    found = [Thing("star", "red"), Thing("star", "blue"), Thing("", "")]
    wanted = [Thing("star", "red"), Thing("ring", "blue"), Thing("star", "red")]
    assert agreement()(found, wanted) == {
        "agreement/shape": pytest.approx(1 / 3),
        "agreement/colour": pytest.approx(2 / 3),
        "agreement/both": pytest.approx(1 / 3),
        "agreement/chance/shape": pytest.approx(4 / 9),
        "agreement/chance/colour": pytest.approx(3 / 9),
        "agreement/chance/both": pytest.approx(2 / 9),
    }


def test_an_edit_is_compared_with_leaving_the_picture():
    before, after = np.zeros((2, 4, 4, 3), np.uint8)
    after = after + np.uint8(20)
    scores = edits()([before + np.uint8(15)], [Edit(before, after)])
    assert scores == {"edits/error": 5, "edits/unchanged": 20, "edits/ratio": 0.25}
    assert "edits/ratio" not in edits()([before], [Edit(before, before)])
