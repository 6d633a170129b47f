# SPDX-License-Identifier: Apache-2.0
"""Augmentation: picture, boxes, masks, keypoints and areas stay together."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.augment import LONGEST, Annotated, augment, crop, fit, flip, resize, swap_left_right
from data_pipelines.masks import mask_boxes

SWAP = [0, 2, 1]


def view(height=60, width=90, n=4, seed=0) -> Annotated:
    """Rectangles with a marked corner: the picture's red is the number of the object, green its keypoint."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((n, height, width), bool)
    keypoints = np.zeros((n, 3, 3), np.float32)
    for i, mask in enumerate(masks):
        x0, y0 = 2 + i * (width // n), rng.integers(0, height // 2)
        w, h = rng.integers(6, width // n - 3), rng.integers(6, height // 2)
        mask[y0 : y0 + h, x0 : x0 + w] = True
        keypoints[i, 1] = x0, y0, 2
        keypoints[i, 2] = x0 + w - 1, y0 + h - 1, 1
        image[mask, 0] = 40 * (i + 1)
        image[y0, x0, 1], image[y0 + h - 1, x0 + w - 1, 1] = 255, 200
    return Annotated(
        image, mask_boxes(masks), masks, keypoints, masks.sum((1, 2)).astype(np.float32), np.arange(n)
    )


def same(a: Annotated, b: Annotated) -> None:
    for field in dataclasses.fields(Annotated):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def consistent(new: Annotated, atol: float = 0.0) -> None:
    np.testing.assert_allclose(mask_boxes(new.masks), new.boxes, atol=atol)
    height, width = new.image.shape[:2]
    assert new.masks.shape == (len(new.boxes), height, width)
    assert (new.boxes >= 0).all() and (new.boxes <= [width, height, width, height]).all()
    assert len(new.kept) == len(new.area) == len(new.keypoints) == len(new.boxes)


def test_flip_mirrors_everything_and_twice_is_the_identity():
    old = view()
    new = flip(old, SWAP)
    assert new.flipped and not np.array_equal(new.image, old.image)
    consistent(new)
    same(flip(new, SWAP), old)
    for i in range(4):
        # The left corner of the picture is the right one of the mirror: names and pixels change sides.
        x, y, v = new.keypoints[i, 2].astype(int)
        assert v == 2 and new.image[y, x, 1] == 255
        x, y, v = new.keypoints[i, 1].astype(int)
        assert v == 1 and new.image[y, x, 1] == 200
    assert not new.keypoints[:, 0].any()  # not labelled
    np.testing.assert_array_equal(flip(old).keypoints[:, :, 2], old.keypoints[:, :, 2])


@pytest.mark.parametrize("seed", range(20))
def test_crop_keeps_masks_boxes_and_keypoints_together(seed):
    rng = np.random.default_rng(seed)
    old = view(seed=seed)
    height, width = rng.integers(10, 60), rng.integers(10, 90)
    top, left = rng.integers(0, 61 - height), rng.integers(0, 91 - width)
    new = crop(old, top, left, height, width)
    consistent(new)
    np.testing.assert_array_equal(new.area, new.masks.sum((1, 2)))
    for place, i in enumerate(new.kept):
        assert (new.image[new.masks[place], 0] == 40 * (i + 1)).all()
        for corner, value in ((1, 255), (2, 200)):
            x, y, v = new.keypoints[place, corner].astype(int)
            old_x, old_y = old.keypoints[i, corner, :2].astype(int)
            inside = left <= old_x < left + width and top <= old_y < top + height
            assert (v > 0) == inside
            assert new.image[y, x, 1] == value if inside else (x, y) == (0, 0)
    gone = set(range(4)) - set(new.kept.tolist())
    assert not old.masks[sorted(gone), top : top + height, left : left + width].any()


def test_crop_without_masks_clips_boxes():
    old = dataclasses.replace(view(), masks=None)
    new = crop(old, 0, 0, 60, 20)
    assert new.masks is None and new.kept.tolist() == [0]  # others start at 24 and beyond
    np.testing.assert_array_equal(new.boxes[0], np.minimum(old.boxes[0], [20, 60, 20, 60]))
    outside = dataclasses.replace(old, boxes=old.boxes + 1000)
    assert len(crop(outside, 0, 0, 60, 90).boxes) == 0


def test_what_ends_at_the_border_is_outside():
    """Of three boxes without masks one is cut in half, one lies beside the part and one below it."""
    boxes = np.array([[10, 10, 30, 20], [20, 0, 30, 10], [5, 30, 15, 40]], np.float32)
    points = np.array([[[19, 29, 2], [20, 29, 2], [19, 30, 2], [0, 0, 1]]], np.float32).repeat(3, 0)
    image = np.zeros((40, 40, 3), np.uint8)
    new = crop(
        Annotated(image, boxes, None, points, np.array([80, 9, 9], np.float32), np.arange(3)), 0, 0, 30, 20
    )
    assert new.boxes.tolist() == [[10, 10, 20, 20]] and new.kept.tolist() == [0]
    assert new.area.tolist() == [40]  # of 80 annotated pixels as much as of the box
    assert new.keypoints[0].tolist() == [[19, 29, 2], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    moved = crop(Annotated(image, boxes, None, points, None, np.arange(3)), 29, 19, 1, 1)
    assert moved.keypoints.shape == (0, 4, 3)


def test_parts_have_the_sizes_of_the_recipe():
    """For a shorter side of 400, 500 or 600 they are 384 to 600 wide and high, or as high as the picture."""
    image = np.zeros((120, 360, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(120)[:, None], np.arange(360) // 2  # says what is seen of it
    old = Annotated(image, np.zeros((0, 4), np.float32), None, None, None, np.zeros(0, int))
    views = [augment(old, np.random.default_rng(seed), size=360, flips=0).image for seed in range(300)]
    seen = np.array([[*view.min((0, 1))[:2], *view.max((0, 1))[:2]] for view in views]).astype(int)
    top, left, bottom, right = seen[seen[:, 3] - seen[:, 1] < 120].T * [[1], [2], [1], [2]]  # without wholes
    assert 120 < len(top) < 180 and top.min() == left.min() == 0 and bottom.max() == 119 and right.max() > 350
    # 384 of 600 pixels are 77 here, 600 of 400 are 180.
    height, width = bottom - top + 1, right - left + 2
    assert 76 <= height.min() < 82 and height.max() == 120 and bottom[height < 110].max() == 119
    assert 76 <= width.min() < 85 and 165 < width.max() <= 182


def test_a_cut_mask_gives_the_box_of_what_is_left():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 0:10, 0:10] = masks[0, 0:3, 10:20] = True  # an L
    old = Annotated(np.zeros((20, 20, 3), np.uint8), mask_boxes(masks), masks, None, None, np.arange(1))
    assert crop(old, 0, 10, 20, 10).boxes.tolist() == [[0, 0, 10, 3]]
    assert len(crop(old, 5, 10, 15, 10).boxes) == 0  # the box reaches there, the object does not


@pytest.mark.parametrize("size", [(120, 180), (30, 45), (33, 71), (61, 200)])
def test_resize_scales_everything(size):
    old = view()
    new = resize(old, *size)
    assert new.image.shape[:2] == size
    consistent(new, atol=0.5 + 1e-4)  # masks have whole pixels
    np.testing.assert_allclose(new.area / (size[0] * size[1]), old.area / (60 * 90), rtol=1e-5)
    if size == (120, 180):
        for i in range(4):
            x, y = new.keypoints[i, 1, :2].astype(int)
            assert new.image[y : y + 2, x : x + 2, 1].max() > 100


def test_thin_masks_do_not_vanish():
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 11, 21] = True
    old = Annotated(np.zeros((40, 40, 3), np.uint8), mask_boxes(masks), masks, None, None, np.arange(1))
    new = resize(old, 4, 4)
    assert np.argwhere(new.masks[0]).tolist() == [[1, 2]]


def test_augment_follows_the_recipe():
    old = view(120, 180)
    sizes, flipped, parts = [], 0, 0
    for seed in range(60):
        new = augment(old, np.random.default_rng(seed), size=200, swap=SWAP)
        consistent(new, atol=0.5 + 1e-3)
        sizes.append(new.image.shape[:2])
        assert max(sizes[-1]) <= 200 and min(sizes[-1]) <= 800 * 200 / LONGEST + 1
        flipped += new.flipped
        parts += len(new.boxes) < 4
    assert len(set(sizes)) > 10 and 15 < flipped < 45 and parts > 0
    same(augment(old, np.random.default_rng(3), size=200), augment(old, np.random.default_rng(3), size=200))


def test_official_sizes():
    old = view(480, 640)
    assert fit(old).image.shape == (800, 1067, 3)
    assert fit(view(100, 400)).image.shape == (333, 1333, 3)
    shorts = {min(augment(old, np.random.default_rng(seed), flips=0).image.shape[:2]) for seed in range(12)}
    assert shorts <= set(range(480, 801, 32)) and len(shorts) > 3


def test_keep_one():
    old = view(60, 90, n=2)
    corner = dataclasses.replace(
        old,
        boxes=np.array([[0, 0, 3, 3]] * 2, np.float32),
        masks=np.broadcast_to(np.pad(np.ones((3, 3), bool), ((0, 57), (0, 87))), (2, 60, 90)),
    )
    counts = [len(augment(corner, np.random.default_rng(s), size=90).boxes) for s in range(30)]
    kept = [len(augment(corner, np.random.default_rng(s), size=90, keep_one=True).boxes) for s in range(30)]
    assert 0 in counts and set(kept) == {2}
    # At the end of a long picture one part of eight shows the object, but most of 20 tries do.
    boxes = np.array([[0, 10, 40, 50]], np.float32)
    end = Annotated(np.zeros((60, 400, 3), np.uint8), boxes, None, None, None, np.arange(1))
    views = [augment(end, np.random.default_rng(s), size=200, keep_one=True).image for s in range(60)]
    assert 18 < sum(image.shape[1] < 3 * image.shape[0] for image in views) < 42  # the others are wholes


def test_targets_are_shares_of_the_picture():
    old = view()
    targets = old.targets(np.array([0, 1, 0, 2]))
    x0, y0, x1, y1 = old.boxes[1]
    np.testing.assert_allclose(
        targets["boxes"][1],
        [(x0 + x1) / 180, (y0 + y1) / 120, (x1 - x0) / 90, (y1 - y0) / 60],
        rtol=1e-6,
    )
    np.testing.assert_allclose(targets["area"], old.masks.mean((1, 2)), rtol=1e-6)
    assert targets["labels"].tolist() == [0, 1, 0, 2] and targets["enlarge"] is False
    np.testing.assert_allclose(targets["keypoints"] * [90, 60], old.keypoints[..., :2], atol=1e-4)
    assert targets["visibility"].tolist() == [[0, 2, 1]] * 4


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("man on the left", "man on the right"),
        ("Left-hand dog, right of the leftmost cat", "Right-hand dog, left of the rightmost cat"),
        ("bright copyright leftover", "bright copyright leftover"),
        ("RIGHT one's left_eye", "LEFT one's right_eye"),
    ],
)
def test_swap_left_right(text, swapped):
    assert swap_left_right(text) == swapped
    assert swap_left_right(swapped) == text
