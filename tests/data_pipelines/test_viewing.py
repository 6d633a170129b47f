# SPDX-License-Identifier: Apache-2.0
"""A picture and its objects as they were read, and as metrics want them."""

import numpy as np
import pytest

from data_pipelines.masks import segmentation_mask
from data_pipelines.viewing import annotate, truth

IMAGE = np.zeros((20, 30, 3), np.uint8)
MASKS = np.zeros((2, 20, 30), bool)
MASKS[0, 2:6, 3:13] = MASKS[1, 10:20, 25:30] = True
MASKS[0, 2, 3:9] = False


def test_objects_have_the_area_of_their_masks_and_boxes_inside_the_picture():
    found = annotate(IMAGE, masks=MASKS)
    assert found.boxes.tolist() == [[3, 2, 13, 6], [25, 10, 30, 20]] and found.area.tolist() == [34, 50]
    given = annotate(IMAGE, masks=MASKS, boxes=np.array([[-5, 2, 13, 6], [25, 10, 33, 24]], np.float32))
    assert given.boxes.tolist() == [[0, 2, 13, 6], [25, 10, 30, 20]] and given.area.tolist() == [34, 50]
    bare = annotate(IMAGE, boxes=np.array([[3, 2, 40, 6]], np.float32))
    assert bare.boxes.tolist() == [[3, 2, 30, 6]] and bare.area is None and bare.masks is None
    with pytest.raises(ValueError, match="objects need masks or boxes"):
        annotate(IMAGE)


def test_the_truth_takes_boxes_as_they_are_and_masks_as_run_lengths():
    found = truth((20, 30), ["a", "b"], masks=MASKS)
    assert found["boxes"].tolist() == [[3, 2, 13, 6], [25, 10, 30, 20]] and found["labels"] == ["a", "b"]
    drawn = [segmentation_mask(outline, 20, 30) for outline in found["segmentations"]]
    np.testing.assert_array_equal(drawn, MASKS)
    beyond = np.array([[-5, 2, 13, 6]], np.float32)
    found = truth((20, 30), ["a"], boxes=beyond)
    np.testing.assert_array_equal(found["boxes"], beyond)
    assert found["segmentations"] is None and found["size"] == (20, 30)
