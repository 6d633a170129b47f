# SPDX-License-Identifier: Apache-2.0
"""Masks from boxes, polygons and run lengths."""

import numpy as np
import pytest

from data_pipelines import masks
from data_pipelines.errors import DataError


def test_box_includes_both_ends_and_is_cut_at_the_border():
    mask = masks.box_mask((1.9, -3.2, 3.1, 2.0), 4, 5)
    want = np.zeros((4, 5), np.uint8)
    want[0:3, 1:4] = 1
    np.testing.assert_array_equal(mask, want)


def test_box_beyond_the_border_is_empty():
    assert masks.box_mask((-9, -9, -4, -4), 4, 5).sum() == 0
    assert masks.box_mask((7, 7, 9, 9), 4, 5).sum() == 0


def test_box_in_tile_is_stretched():
    # Left half of a 100 x 40 picture: columns 0 to int(50 * 8 / 100) = 4 of 8, all rows.
    mask = masks.box_in_tile((0, 0, 50, 40), 40, 100, 8)
    np.testing.assert_array_equal(mask.sum(0), [8, 8, 8, 8, 8, 0, 0, 0])


def test_box_in_tile_lies_where_the_box_lies():
    mask = masks.box_in_tile((50, 10, 80, 30), 40, 100, 20)
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max(), ys.max(), len(xs)) == (10, 5, 16, 15, 7 * 11)


def test_a_stretched_mask_reaches_as_far_as_interpolation():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, 0, 0] = 1
    (found,) = masks.resize_masks(mask, 8)  # 1, 3/4, 1/4 and 0 along either side
    np.testing.assert_array_equal(np.argwhere(found), np.argwhere(np.ones((3, 3))))


def test_mask_boxes():
    stack = np.zeros((2, 6, 7), np.uint8)
    stack[0, 2:4, 1:6] = 1
    np.testing.assert_array_equal(masks.mask_boxes(stack), [[1, 2, 6, 4], [0, 0, 0, 0]])


def test_polygon_covers_pixels_by_their_centre():
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    want = np.zeros((5, 6), np.uint8)
    want[1:3, 1:4] = 1
    np.testing.assert_array_equal(masks.segmentation_mask(square, 5, 6), want)
    # Two parts are united; what sticks out is cut off.
    both = masks.segmentation_mask([*square, [-2, -2, 1, -2, 1, 9, -2, 9]], 5, 6)
    want[:, 0] = 1
    np.testing.assert_array_equal(both, want)


def test_polygon_between_pixels():
    # Centres 1.5, 2.5 and 3.5 lie between 1.4 and 3.6, only 1.5 between 0.6 and 2.4.
    found = masks.segmentation_mask([[1.4, 0.6, 3.6, 0.6, 3.6, 2.4, 1.4, 2.4]], 5, 6)
    np.testing.assert_array_equal(np.argwhere(found), [[1, 1], [1, 2], [1, 3]])


def test_triangle_area():
    mask = masks.segmentation_mask([[0, 0, 40, 0, 0, 40]], 50, 50)
    assert abs(int(mask.sum()) - 800) <= 20  # half of 40 x 40, up to the diagonal's pixels


def test_run_lengths_go_down_the_columns():
    # 3 x 2 pixels: two zeros, three ones, one zero, column after column.
    mask = masks.segmentation_mask({"size": [3, 2], "counts": [2, 3, 1]}, 3, 2)
    np.testing.assert_array_equal(mask, [[0, 1], [0, 1], [1, 0]])


def test_packed_run_lengths():
    # Written by pycocotools 2.0 for a 22 x 5 mask.
    packed = "041N0h00\\O080I0L071007"
    mask = masks.segmentation_mask({"size": [22, 5], "counts": packed}, 22, 5)
    runs = masks.unpack_counts(packed)
    assert sum(runs) == 110 and min(runs) >= 0
    np.testing.assert_array_equal(masks.unpack_counts(packed.encode()), runs)
    assert masks.unpack_counts("S11X2") == [35, 1, 72]
    assert mask.sum() == sum(runs[1::2])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 2], "counts": [2, 3]}, "cover 5 pixels of 6"),
        ({"size": [2, 3], "counts": [6]}, r"run lengths are for \[2, 3\]"),
        ([[0, 0, 1, 1]], "a polygon has 4 numbers"),
        ([0, 0, 1, 1, 2, 2], "neither polygons nor run lengths"),
        ({"counts": [6]}, "neither polygons nor run lengths"),
        ([[0, 0, 1, None, 1, 1]], r"\[0, 0, 1, None, 1, 1\] is not a list of finite numbers"),
        ([[0, 0, 1, "1", 1, 1]], "is not a list of finite numbers"),
        ([[0, 0, 1, float("nan"), 1, 1]], "is not a list of finite numbers"),
        ({"size": [3, 2], "counts": [None, 6]}, "is not a list of finite numbers"),
        ({"size": [3, 2], "counts": None}, "None is not a list of finite numbers"),
        ({"size": None, "counts": [6]}, "run lengths are for None"),
    ],
)
def test_bad_segmentations(segmentation, message):
    with pytest.raises(DataError, match=message) as caught:
        masks.segmentation_mask(segmentation, 3, 2)
    assert caught.value.field == "segmentation" and caught.value.remedy


def test_resized_masks_keep_thin_regions():
    thin = np.zeros((1, 60, 60), np.uint8)
    thin[0, :, 31] = 1
    got = masks.resize_masks(thin, 30)
    assert got.shape == (1, 30, 30) and got.dtype == np.uint8
    np.testing.assert_array_equal(got[0].sum(0).nonzero()[0], [15])
    assert masks.resize_masks(np.zeros((0, 9, 9), np.uint8), 4).shape == (0, 4, 4)
