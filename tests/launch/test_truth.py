# SPDX-License-Identifier: Apache-2.0
"""What metrics compare with, in pixels: from a decoder's targets, and as a dataset gives it."""

import numpy as np
import pytest

from data_pipelines.example import Example
from launch import truth
from vllm2_jax.evals.objects import decode
from vllm2_jax.evals.semantic import IGNORE

HEIGHT, WIDTH = 20, 40


def example(decoder="grounding_dino", meta=None, **targets) -> Example:
    """Two objects: a cat in the upper left, a dog on the right."""
    boxes = np.array([[0.2, 0.25, 0.4, 0.5], [0.75, 0.6, 0.5, 0.4]], np.float32)
    found = {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "boxes": boxes, "labels": np.array([1, 0])}
    return Example(
        "x", "x", "0", [], targets={decoder: found | targets}, meta={"classes": ["dog", "cat"]} | (meta or {})
    )


def masks() -> np.ndarray:
    """An L in the box of the cat, and the whole box of the dog, which begins inside it."""
    drawn = np.zeros((2, HEIGHT, WIDTH), bool)
    drawn[0, 0:10, 0:4] = drawn[0, 6:10, 0:16] = True
    drawn[1, 8:16, 12:40] = True
    return drawn


def test_objects_of_targets_are_in_pixels():
    found = truth.objects_of(example(masks=masks()), "grounding_dino")
    assert found.size == (HEIGHT, WIDTH) and found.labels.tolist() == ["cat", "dog"]
    np.testing.assert_allclose(found.boxes, [[0, 0, 16, 10], [20, 8, 40, 16]], atol=1e-5)
    np.testing.assert_array_equal([decode(mask) for mask in found.masks], masks())
    assert found.keypoints is None and not found.crowds.any()


@pytest.mark.parametrize(
    "more, areas",
    [
        ({"area": np.array([0.05, 0.2], np.float32), "masks": masks()}, [40, 160]),  # annotated: wins
        ({"masks": masks()}, [88, 224]),
        ({}, [160, 160]),
    ],
)
def test_areas_of_targets(more, areas):
    np.testing.assert_allclose(truth.objects_of(example(**more), "grounding_dino").areas, areas, rtol=1e-5)


def test_keypoints_stand_where_the_dataset_lists_them():
    targets = {
        "keypoints": np.array([[[0.1, 0.5], [0.25, 1.0]], [[0.5, 0.0], [0.0, 0.0]]], np.float32),
        "visibility": np.array([[2, 1], [1, 0]]),
        "keypoint_ids": np.array([5, 2, 0, 0]),  # padded
    }
    asked = example("unipose", {"keypoints": ["left ear", "nose"]}, **targets)
    assert truth.keypoint_ids(asked, "unipose") == [5, 2]
    names = truth.keypoint_names(asked, "unipose")
    assert (names[5], names[2], len(names)) == ("left ear", "nose", 68) and "".join(names) == "noseleft ear"
    points = truth.objects_of(asked, "unipose").keypoints
    np.testing.assert_allclose(points[:, 5], [[4, 10, 2], [20, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(points[:, 2], [[10, 20, 1], [0, 0, 0]], rtol=1e-6)
    assert np.count_nonzero(points[..., 2]) == 3


def test_what_a_dataset_gives_comes_before_the_targets():
    given = {
        "size": (30, 50),
        "boxes": [[1, 2, 11, 22]],
        "labels": ["bird"],
        "keypoints": np.array([[[3.0, 4.0, 2.0]]]),
        "area": np.array([123.0]),
        "crowd": np.array([True]),
        "crowd_index": 0.7,
        "segmentations": [[[1, 2, 11, 2, 11, 22, 1, 22]]],
    }
    found = truth.objects_of(example(meta={"truth": given}, masks=masks()), "grounding_dino")
    assert truth.picture_size(example(meta={"truth": given}), "grounding_dino") == found.size == (30, 50)
    assert found.boxes.tolist() == given["boxes"] and found.labels.tolist() == ["bird"]
    assert found.areas.tolist() == [123] and found.crowds.tolist() == [True] and found.crowd_index == 0.7
    ys, xs = np.nonzero(decode(found.masks[0]))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, len(xs)) == (1, 2, 11, 22, 200)
    np.testing.assert_array_equal(found.keypoints, given["keypoints"])
    bare = {"size": (30, 50), "boxes": [[1, 2, 11, 22]], "labels": ["bird"]}
    found = truth.objects_of(example(meta={"truth": bare}, masks=masks()), "grounding_dino")
    assert found.masks is None and found.areas.tolist() == [200] and found.crowds.tolist() == [False]


def test_classes_of_pixels_are_the_masks_and_nothing_else():
    found = truth.classes_of(example(masks=masks()), "grounding_dino")
    cat, dog = masks()
    expected = np.where(dog, 0, np.where(cat, 1, IGNORE))
    np.testing.assert_array_equal(found.labels, expected)
    assert found.names == ("dog", "cat") and (cat & dog).any()
    given = {"size": (1, 2), "classes": np.array([[1, IGNORE]]), "names": ["sky", "sea"]}
    found = truth.classes_of(example(meta={"truth": given}), "grounding_dino")
    assert found.labels.tolist() == [[1, IGNORE]] and found.names == ("sky", "sea")
