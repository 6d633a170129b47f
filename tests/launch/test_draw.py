# SPDX-License-Identifier: Apache-2.0
"""What is drawn where."""

import numpy as np
import pytest

from data_pipelines import draw
from launch.draw import draw_classes, draw_objects
from tests.evals.pictures import SIZE, fill
from vllm2_jax.evals.objects import Detections, GroundTruth, encode, nothing
from vllm2_jax.evals.semantic import IGNORE, LabelMap

GREY = np.full((*SIZE, 3), 128, np.uint8)
BOXES = np.array([[5, 20, 35, 50], [45, 20, 75, 50]], float)


def detections(**changes):
    fields = {"boxes": BOXES, "labels": np.array(["dog", "cat"]), "scores": np.array([0.9, 0.2])}
    return Detections(**fields | changes)


def changed(page):
    return (np.asarray(page) != 128).any(-1)


def test_only_what_is_above_the_threshold():
    both, first = (draw_objects(GREY, detections(), threshold=t) for t in (0.0, 0.5))
    assert changed(both)[49, 5:35].all() and changed(both)[49, 45:75].all()
    assert changed(first)[49, 5:35].all() and not changed(first)[25:, 45:].any()
    assert not changed(first)[30, 15:25].any()  # nothing inside of a box without a mask
    assert not changed(draw_objects(GREY, nothing())).any()


def test_a_class_has_one_colour_in_all_pictures():
    names = ("bird", "cat", "dog")
    page = np.asarray(draw_objects(GREY, detections(), names=names))
    assert tuple(page[40, 5]) == draw.colour_of(2) and tuple(page[40, 45]) == draw.colour_of(1)
    alike = np.asarray(draw_objects(GREY, detections(labels=np.array(["dog", "dog"]))))
    assert tuple(alike[40, 5]) != tuple(alike[40, 45])  # one class alone: objects differ


def test_the_best_lie_on_top():
    boxes = np.array([[20, 10, 60, 50], [20, 10, 60, 50]], float)
    for labels in (["cat", "dog"], ["dog", "cat"]):
        objects = detections(boxes=boxes, labels=np.array(labels), masks=encode(fill(boxes)))
        page, alone = (
            np.asarray(draw_objects(GREY, objects, names=("cat", "dog"), threshold=t)) for t in (0.0, 0.5)
        )
        colour = draw.colour_of(("cat", "dog").index(labels[0]))
        assert tuple(page[49, 40]) == tuple(alone[49, 40]) == colour
        # Both masks are half transparent: the upper one takes more of the pixel.
        nearer = [np.abs(page[30, 40] - np.array(draw.colour_of(i))).sum() for i in (0, 1)]
        assert np.argmin(nearer) == ("cat", "dog").index(labels[0])


def test_what_is_at_the_threshold_is_left_out():
    page = draw_objects(GREY, detections(), threshold=0.2)
    assert changed(page)[49, 5:35].all() and not changed(page)[25:, 45:].any()


def test_lines_and_points_grow_with_the_picture():
    large = np.full((1000, 1200, 3), 128, np.uint8)
    edge = np.flatnonzero(changed(draw_objects(large, detections(boxes=BOXES * 10)))[400, :200])
    assert edge.tolist() == [50, 51, 52, 53]  # a 250th of the shorter side


def test_masks_tint_their_pixels():
    page = draw_objects(GREY, detections(masks=encode(fill(BOXES)), scores=np.array([0.9, 0.8])))
    inside = np.asarray(page)[30, 15:25]
    assert (inside == inside[0]).all() and tuple(inside[0]) != (128, 128, 128)
    assert not changed(page)[30, 38:43].any()


@pytest.mark.parametrize("visibility, filled", [(0, False), (1, False), (2, True)])
def test_skeletons(visibility, filled):
    points = np.array([[[15.0, 30.0, visibility], [60.0, 30.0, visibility]]])
    there = GroundTruth(SIZE, BOXES[:1], np.array(["person"]), keypoints=points)
    page = draw_objects(GREY, there, keypoints=("left shoulder", "right shoulder"))
    bone = changed(page)[30, 25:33].any() or changed(page)[30, 37:50].any()
    assert bone == (visibility > 0)
    assert (tuple(np.asarray(page)[30, 15 - 1]) == (0, 190, 70)) == filled


def test_skeletons_leave_out_points_that_are_nowhere():
    points = np.array([[[np.nan, np.inf], [60.0, 30.0]]])
    page = draw_objects(
        GREY,
        detections(boxes=BOXES[:1], labels=np.array(["p"]), scores=np.ones(1), keypoints=points),
        keypoints=("left hip", "right hip"),
    )
    assert changed(page)[30, 60] and not changed(page)[25:35, 40:50].any()


def test_boxes_out_of_the_picture_are_drawn_as_far_as_they_go():
    wild = np.array([[-50, -50, 20, 30], [60, 40, 300, 30]], float)
    page = draw_objects(GREY, detections(boxes=wild, scores=np.ones(2)))
    assert changed(page)[29, :20].all() and page.size == (80, 60)


def test_classes_of_pixels():
    labels = np.full(SIZE, IGNORE)
    labels[:30], labels[30:50] = 0, 2
    page = np.asarray(draw_classes(GREY, LabelMap(labels, ("sky", "sea", "sand"))))
    assert (page[55:] == 128).all()
    assert tuple(page[2, 2]) != tuple(page[40, 2]) and (page[40, 2] != 128).any()


def test_small_classes_are_tinted_but_not_named():
    labels = np.full(SIZE, IGNORE)
    labels[30:34, 40:46] = 0  # 24 of 4800 pixels are one 200th
    small = changed(draw_classes(GREY, LabelMap(labels, ("sky",))))
    np.testing.assert_array_equal(small, labels == 0)
    labels[34, 40] = 0
    named = changed(draw_classes(GREY, LabelMap(labels, ("sky",))))
    ys, xs = np.nonzero(named & (labels != 0))
    assert ys.max() <= 34 and xs.min() >= 40  # the name stands above the middle of its pixels
