# SPDX-License-Identifier: Apache-2.0
"""Marks of six shapes on a disc."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.visual_prompts import SHAPES, draw_prompt

SIZE = 96
Y, X = np.mgrid[:SIZE, :SIZE]
DISC = (Y - 40) ** 2 + (X - 50) ** 2 < 30**2


def draw(shape, mask=DISC, n=40):
    return [draw_prompt(shape, mask, np.random.default_rng(seed)) for seed in range(n)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_marks_the_object(shape):
    found = draw(shape)
    for prompt in found:
        assert prompt.shape == DISC.shape and prompt.dtype == bool
        assert (prompt & DISC).any()
        if shape not in ("box", "polygon"):
            assert not (prompt & ~DISC).any()
    np.testing.assert_array_equal(found, draw(shape))
    different = len({prompt.tobytes() for prompt in found})
    assert different == 1 if shape in ("box", "mask") else different > 25


def test_points_are_single_pixels():
    counts = {int(prompt.sum()) for prompt in draw("point", n=200)}
    assert counts == set(range(1, 21))


def test_box_grows_by_a_pixel_to_the_right_and_below():
    small = np.zeros((12, 12), bool)
    small[2:6, 3:8] = True
    wanted = np.zeros((12, 12), bool)
    wanted[2:7, 3:9] = True
    np.testing.assert_array_equal(draw_prompt("box", small, np.random.default_rng(0)), wanted)


def test_scribbles_are_thinner_than_circles():
    def thickness(shape):
        return np.mean([ndimage.distance_transform_edt(prompt).max() for prompt in draw(shape)])

    assert 1 < thickness("scribble") < 0.7 * thickness("circle")
    shares = [prompt.sum() / DISC.sum() for prompt in draw("scribble")]
    assert 0.02 < np.mean(shares) < 0.6


def test_polygon_is_a_thin_closed_line_near_the_object():
    closed = 0
    for prompt in draw("polygon", n=60):
        assert ndimage.label(prompt, np.ones((3, 3)))[1] == 1  # in one piece
        assert prompt.sum() < 0.35 * DISC.sum()
        closed += ndimage.binary_fill_holes(prompt).sum() > 1.5 * prompt.sum()
        assert ndimage.distance_transform_edt(~DISC)[prompt].max() < 15
    assert closed > 35


def test_tiny_objects_get_no_mark():
    for shape in SHAPES:
        assert not draw_prompt(shape, np.eye(9, dtype=bool), np.random.default_rng(0)).any()
        line = np.zeros((40, 40), bool)
        line[7, 3:20] = True
        for prompt in draw(shape, line, n=20):
            assert (prompt & line).any()


def test_objects_at_the_border():
    corner = np.zeros((30, 30), bool)
    corner[-5:, -5:] = True
    for shape in SHAPES:
        assert all((prompt & corner).any() for prompt in draw(shape, corner, n=30))
