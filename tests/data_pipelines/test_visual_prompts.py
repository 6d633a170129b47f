# SPDX-License-Identifier: Apache-2.0
"""Marks of six shapes on a disc."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines import visual_prompts
from data_pipelines.visual_prompts import CIRCLES, SCRIBBLES, SHAPES, Stroke, draw_prompt

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


def test_a_curve_runs_through_its_points_without_corners():
    square = np.array([[0.0, 0.0], [10, 0], [10, 10], [0, 10]])
    sides = visual_prompts._closed_curve(square).reshape(-1, 4, 2).swapaxes(0, 1)
    np.testing.assert_allclose(sides[:, 0], square)
    np.testing.assert_allclose(sides[:, -1], np.roll(square, -1, 0), atol=1e-9)
    begin, end = np.diff(sides[:, :2], axis=1)[:, 0], np.diff(sides[:, -2:], axis=1)[:, 0]
    # A cubic curve begins with three times its handle, here a fifth of the side.
    np.testing.assert_allclose(np.linalg.norm(begin, axis=1) * (len(sides[0]) - 1), 3 * 0.2 * 10, rtol=0.1)
    between = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])  # of the two sides that meet there
    for heading in (begin, np.roll(end, 1, axis=0)):
        cosines = (heading * between).sum(1) / np.linalg.norm(heading, axis=1) / 2**0.5
        assert (cosines > 0.97).all()


def test_polygons_go_round_their_points(monkeypatch):
    given = []
    monkeypatch.setattr(visual_prompts, "_closed_curve", lambda points: given.append(points) or points)
    for prompt, points in zip(draw("polygon"), given, strict=True):
        x, y = points.T
        assert DISC[y.astype(int), x.astype(int)].all() and prompt.sum() == len(x)
        assert (np.diff(np.arctan2(y - y.mean(), x - x.mean())) >= 0).all()


@pytest.mark.parametrize(("shape", "kinds"), [("scribble", SCRIBBLES), ("circle", CIRCLES)])
def test_one_to_five_strokes_of_all_kinds(monkeypatch, shape, kinds):
    drawn = []

    def stroke(start, size, kind, rng):
        drawn.append((start, kind))
        return np.zeros(size, bool)  # it leaves the object

    monkeypatch.setattr(visual_prompts, "_stroke", stroke)
    counts, used = set(), set()
    for seed in range(60):
        prompt = draw_prompt(shape, DISC, np.random.default_rng(seed))
        x, y = drawn[-1][0].astype(int)
        assert prompt.sum() == 1 and prompt[y, x]
        counts.add(len(drawn))
        used |= {kind for _, kind in drawn}
        drawn.clear()
    assert counts == {1, 2, 3, 4, 5} and used == set(kinds)


def stroke(seed=0, at=(100, 90), **changes) -> np.ndarray:
    """Rows (y, x) of the pixels of a stroke in a large picture; by default it stands still."""
    kind = {"steps": (20, 21), "fastest": 0, "change": (0, 0), "width": (9, 9), "jitter": 0, "start": 0}
    start = np.array(at, np.float64)
    drawn = visual_prompts._stroke(start, (200, 200), Stroke(**kind | changes), np.random.default_rng(seed))
    return np.argwhere(drawn)


def test_a_brush_is_as_wide_as_its_discs():
    found = stroke()
    assert found.min(0).tolist() == [90 - 3, 100 - 3] and found.max(0).tolist() == [90 + 3, 100 + 3]
    sides = {int(np.ptp(stroke(seed, width=(4, 20))[:, 0])) + 1 for seed in range(40)}
    assert sides == {2 * radius + 1 for radius in range(1, 9)}


def test_half_of_the_points_are_shaken():
    found = stroke(jitter=12, width=(2, 2)) - np.array([90, 100])
    assert 6 < np.abs(found).max() <= 13 and (found == 0).all(1).any()


def test_strokes_are_shifted_any_way():
    centres = np.array([stroke(seed, start=20).mean(0) for seed in range(60)]) - np.array([90, 100])
    # |N(0, 10)| has the mean 8.
    assert 6 < np.linalg.norm(centres, axis=1).mean() < 10 and np.abs(centres.mean(0)).max() < 3


def test_strokes_walk_any_way_as_far_as_their_moves():
    """20 moves of up to 4 pixels straight on, and a shift."""
    found = [stroke(seed, start=4, fastest=9) - np.array([90, 100]) for seed in range(60)]
    assert {tuple(np.sign(pixels.mean(0)).astype(int)) for pixels in found} >= {
        (1, 1),
        (1, -1),
        (-1, 1),
        (-1, -1),
    }
    lengths = [np.linalg.norm(np.ptp(pixels, axis=0)) for pixels in found]
    assert 60 < max(lengths) < 20 * 4 + 14
    longer = [np.linalg.norm(np.ptp(stroke(s, start=4, fastest=9, steps=(5, 40)), axis=0)) for s in range(60)]
    assert max(longer) > 20 * 4 + 14


def test_tiny_objects_get_no_mark():
    for shape in SHAPES:
        assert not draw_prompt(shape, np.eye(9, dtype=bool), np.random.default_rng(0)).any()
        assert draw_prompt(shape, np.eye(10, dtype=bool), np.random.default_rng(0)).any()
        line = np.zeros((40, 40), bool)
        line[7, 3:20] = True
        for prompt in draw(shape, line, n=20):
            assert (prompt & line).any()


def test_objects_at_the_border():
    corner = np.zeros((30, 30), bool)
    corner[-5:, -5:] = True
    for shape in SHAPES:
        assert all((prompt & corner).any() for prompt in draw(shape, corner, n=30))
