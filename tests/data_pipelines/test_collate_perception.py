# SPDX-License-Identifier: Apache-2.0
"""Targets of the decoders that see: pictures, boxes, masks and keypoints stay together, capacities hold."""

import numpy as np
import pytest

from data_pipelines.collate import DECODER_COLLATE, TaskShape
from data_pipelines.collate_perception import grounding_dino, into_square, shrink, unipose
from data_pipelines.errors import CapacityError, DataError
from vllm2_jax.decoders.grounding_dino import targets as grounding
from vllm2_jax.decoders.unipose import targets as pose

RNG = np.random.default_rng(0)


def shape(decoder="grounding_dino", links=None, strict=True, **capacities):
    capacities = {"size": 64, "objects": 3, **capacities}
    return TaskShape(1, decoder, links=links or {"det": 2}, capacities=capacities, strict=strict)


def objects(n=2, height=40, width=80):
    """A white rectangle for each object on black: row i's is in the i-th quarter from the left."""
    masks = np.zeros((n, height, width), bool)
    for i in range(n):
        masks[i, 8:24, 20 * i : 20 * i + 12] = True
    starts = 20 * np.arange(n)
    boxes = np.stack([(starts + 6) / width, np.full(n, 16 / height), np.full(n, 12 / width)], 1)
    return {
        "image": (masks.any(0)[..., None] * np.full(3, 255)).astype(np.uint8),
        "boxes": np.concatenate([boxes, np.full((n, 1), 16 / height)], 1).astype(np.float32),
        "labels": np.arange(n) % 2,
        "masks": masks,
        "area": masks.mean((1, 2), dtype=np.float32),
        "keypoints": RNG.random((n, 3, 2)).astype(np.float32),
        "visibility": RNG.integers(0, 3, (n, 3)),
        "keypoint_ids": np.array([4, 0, 9]),
    }


def test_boxes_and_masks_lie_on_the_picture():
    arrays, dropped = grounding_dino(objects(), shape())
    assert (
        dropped == 0
        and arrays["size"].tolist() == [32, 64]
        and arrays["valid"].tolist() == [True, True, False]
    )
    assert not arrays["image"][32:].any()  # below the picture
    for box, mask in zip(arrays["boxes"][:2], arrays["masks"][:2], strict=True):
        inside = np.kron(mask, np.ones((4, 4), np.uint8)).astype(bool)
        ys, xs = np.nonzero(inside)
        height, width = arrays["size"]
        got = xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height
        want = *(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)
        np.testing.assert_allclose(got, want, atol=2 / 32)  # half a mask pixel
        assert arrays["image"][inside].mean() > 200


@pytest.mark.parametrize(("name", "module"), [("grounding_dino", grounding), ("unipose", pose)])
def test_the_arrays_are_those_the_decoder_declares(name, module):
    links = {"det": 2} if name == "grounding_dino" else {"det": 2, "pose": 5}
    extra = {} if name == "grounding_dino" else {"keypoints": 5}
    declared = module.Capacity(size=64, objects=3, **extra).arrays(1)
    for targets in (objects(), None):
        arrays, _ = DECODER_COLLATE[name](targets, shape(name, links))
        got = {key: (value.shape, value.dtype) for key, value in arrays.items()}
        assert got == {key: (value.shape[1:], value.dtype) for key, value in declared.items()}


def test_keypoints_keep_their_links_and_numbers():
    targets = objects()
    arrays, _ = unipose(targets, shape("unipose", {"det": 2, "pose": 5}))
    assert arrays["keypoint_ids"].tolist() == [4, 0, 9, 0, 0]
    np.testing.assert_array_equal(arrays["keypoints"][:2, :3], targets["keypoints"])
    np.testing.assert_array_equal(arrays["visibility"][:2, :3], targets["visibility"])
    assert not arrays["visibility"][2].any() and not arrays["visibility"][:, 3:].any()


def test_an_object_may_lack_a_mask_but_not_some_of_them():
    targets = objects()
    without = {name: value for name, value in targets.items() if name != "masks"}
    arrays, _ = grounding_dino(without, shape())
    assert arrays["valid"].sum() == 2 and not arrays["mask_valid"].any()
    with pytest.raises(DataError, match="1 masks for 2 boxes"):
        grounding_dino({**targets, "masks": targets["masks"][:1]}, shape())


def test_a_picture_without_objects():
    arrays, dropped = grounding_dino(objects(0), shape())
    assert dropped == 0 and not arrays["valid"].any() and np.isfinite(arrays["boxes"]).all()


def test_capacities():
    with pytest.raises(CapacityError, match=r"4 objects .* room for 3"):
        grounding_dino(objects(4), shape())
    assert grounding_dino(objects(3), shape())[0]["valid"].all()
    arrays, dropped = grounding_dino(objects(4), shape(strict=False))
    assert dropped == 1 and arrays["valid"].all()
    np.testing.assert_array_equal(arrays["boxes"], objects(4)["boxes"][:3])
    # Objects of a link that found no place go with it.
    arrays, dropped = grounding_dino(objects(2), shape(links={"det": 1}, strict=False))
    assert dropped == 1 and arrays["labels"].tolist() == [0, 0, 0] and arrays["valid"].sum() == 1
    with pytest.raises(CapacityError, match="3 keypoints where there is room for 2"):
        unipose(objects(), shape("unipose", {"det": 2, "pose": 2}))
    with pytest.raises(DataError, match="no capacity 'size'"):
        grounding_dino(None, TaskShape(1, "grounding_dino", links={"det": 1}, capacities={"objects": 1}))
    with pytest.raises(DataError, match="end with its keypoints"):
        unipose(None, shape("unipose", {"pose": 2, "det": 2}))


def test_small_masks_do_not_vanish():
    mask = np.zeros((64, 64), bool)
    mask[10, 10] = True
    assert shrink(mask, 16, 16).sum() == 1 and shrink(mask, 16, 16)[2, 2] == 1
    assert not shrink(np.zeros((64, 64), bool), 16, 16).any()
    mask[10, 11:14] = True  # columns 8 to 11 and 12 to 15: two pixels each
    mask[11, 11] = True
    assert np.argwhere(shrink(mask, 16, 16)).tolist() == [[2, 2]]  # the cell it covers most


@pytest.mark.parametrize("height, width", [(40, 50), (33, 33), (7, 61)])
def test_cells_of_masks_lie_where_the_picture_lies(height, width):
    mask = np.random.default_rng(width).random((height, width)) < 0.5
    cells = np.pad(mask, [(0, -height % 4), (0, -width % 4)]).reshape(-(-height // 4), 4, -1, 4).mean((1, 3))
    np.testing.assert_array_equal(shrink(mask, height / 4, width / 4), cells >= 0.5)


def test_tall_pictures():
    square, size = into_square(np.full((100, 10, 3), 7, np.uint8), 64)
    assert size == (64, 6) and (square[:, :6] == 7).all() and not square[:, 6:].any()


def test_a_picture_that_has_its_size():
    square, size = into_square(np.full((20, 30, 3), 7, np.uint8), 64, enlarge=False)
    assert size == (20, 30) and (square[:20, :30] == 7).all() and square.sum() == 20 * 30 * 3 * 7
    assert into_square(np.zeros((100, 128, 3), np.uint8), 64, enlarge=False)[1] == (50, 64)
    arrays, _ = grounding_dino(objects() | {"enlarge": False}, shape(size=96))
    assert arrays["size"].tolist() == [40, 80]
    # The masks follow: columns 20 to 32, rows 8 to 24, a mask pixel for each 4.
    assert np.argwhere(arrays["masks"][1]).min(0).tolist() == [2, 5]
    assert np.argwhere(arrays["masks"][1]).max(0).tolist() == [5, 7]
