# SPDX-License-Identifier: Apache-2.0
"""Classes of pixels, salient objects, and the way from a decoder's frame to the original picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.evals import EVALS, postprocess, saliency
from vllm2_jax.evals.semantic import IGNORE, LabelMap

NAMES = ("sky", "tree", "road", "car")


def test_semantic_by_hand():
    true = LabelMap(np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]], np.uint8), NAMES)
    found = LabelMap(np.array([[0, 0, 0, 1], [0, 0, 1, 2]], np.uint8), NAMES)
    # Class 0: 4 of 5 in the union; class 1: 2 of 3; class 2 only where there is no truth; class 3 nowhere.
    assert EVALS["semantic"]([found], [true]) == {
        "semantic/mIoU": pytest.approx((4 / 5 + 2 / 3) / 2),
        "semantic/mAcc": pytest.approx((1 + 2 / 3) / 2),
        "semantic/aAcc": pytest.approx(6 / 7),
    }
    halves = [LabelMap(x.labels[:, i : i + 2], NAMES) for i in (0, 2) for x in (found, true)]
    assert EVALS["semantic"](halves[::2], halves[1::2]) == EVALS["semantic"]([found], [true])
    assert EVALS["semantic"]([true], [true])["semantic/mIoU"] == 1.0
    nothing = LabelMap(np.full((2, 2), IGNORE), NAMES)
    assert EVALS["semantic"]([LabelMap(np.zeros((2, 2), int), NAMES)], [nothing]) == {}
    with pytest.raises(ValueError, match="resized to the original"):
        EVALS["semantic"]([nothing], [true])
    with pytest.raises(ValueError, match="the predicted map has the classes"):
        EVALS["semantic"]([LabelMap(true.labels, NAMES[::-1])], [true])


def test_a_class_that_is_nowhere_counts_where_it_is_predicted():
    true = LabelMap(np.array([[0, 0, 1, 255]]), NAMES)
    found = LabelMap(np.array([[0, 2, 1, 3]]), NAMES)
    assert EVALS["semantic"]([found], [true]) == {
        "semantic/mIoU": pytest.approx((1 / 2 + 1 + 0) / 3),
        "semantic/mAcc": pytest.approx((1 / 2 + 1) / 2),
        "semantic/aAcc": pytest.approx(2 / 3),
    }


def test_semantic_goes_by_name():
    # The same pixels, their classes listed in another order.
    one = LabelMap(np.array([[0, 1]]), NAMES[:2]), LabelMap(np.array([[0, 0]]), NAMES[:2])
    two = LabelMap(np.array([[1, 0]]), NAMES[1::-1]), LabelMap(np.array([[1, 1]]), NAMES[1::-1])
    records = [EVALS["semantic"].record(*pair) for pair in (one, two)]
    assert records[0] == records[1]


def shapes():
    """A disc, and the same moved with a hole and a stray spot."""
    y, x = np.mgrid[:24, :30]
    true = (y - 11) ** 2 + (x - 14) ** 2 < 50
    found = (y - 12) ** 2 + (x - 17) ** 2 < 50
    found[12:14, 16:19] = False
    found[2, 2:5] = True
    return found, true


# From PySODMetrics 1.6.2 with the masks as 0 and 255.
@pytest.mark.parametrize(
    "flip, S, E, wF",
    [
        (False, 0.690355461, 0.875484619, 0.722814558),
        (True, 0.0, 0.073350630, 0.365924867),
    ],
)
def test_saliency_against_the_official_package(flip, S, E, wF):
    found, true = shapes()
    if flip:
        found, true = true, ~found
    assert saliency.s_measure(found, true) == pytest.approx(S, abs=1e-6)
    assert saliency.e_measure(found, true) == pytest.approx(E, abs=1e-6)
    assert saliency.weighted_f(found, true) == pytest.approx(wF, abs=1e-6)


@pytest.mark.parametrize("there", [np.zeros, np.ones])
@pytest.mark.parametrize("found", [np.zeros, np.ones])
def test_saliency_of_all_or_nothing(found, there):
    a, b = found((5, 6), bool), there((5, 6), bool)
    equal = float(found is there)
    assert saliency.s_measure(a, b) == equal
    # Errors fade at the border of the picture, where the smoothing meets zeros, so all missed is not 0.
    assert saliency.weighted_f(a, b) == pytest.approx(0.678424 if b.all() and equal == 0 else float(b.all()))
    assert 0 <= saliency.e_measure(a, b) <= 30 / 29


def test_saliency_of_one_pixel_in_the_corner():
    true = np.zeros((4, 5), bool)
    true[-1, -1] = True
    assert saliency.s_measure(true, true) == pytest.approx(1.0)
    assert saliency.weighted_f(true, true) == pytest.approx(1.0)


@pytest.mark.parametrize("before, after", [(5, 20), (20, 7), (9, 9), (1, 6), (17, 3)])
def test_bilinear_is_that_of_jax(before, after):
    x = np.random.default_rng(0).normal(size=before).astype(np.float32)
    want = jax.image.resize(jnp.asarray(x), (after,), "linear", antialias=False)
    np.testing.assert_allclose(postprocess.bilinear(before, after) @ x, want, atol=2e-5)


def test_masks_come_back_to_where_they_were():
    # A picture of 30 x 50 seen as 48 x 80 in a frame of 96: a box of it in the masks at a quarter.
    frame = np.full((1, 24, 24), -4.0, np.float32)
    frame[0, 4:8, 5:15] = 4.0  # 16..32 x 20..60 of the frame, 10..20 x 12.5..37.5 here
    (mask,) = postprocess.instance_masks(frame, (48, 80), (30, 50))
    ys, xs = np.nonzero(mask)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (10, 19, 13, 36)
    assert mask.sum() == pytest.approx(10 * 25, rel=0.05)
    assert postprocess.instance_masks(frame[:0], (48, 80), (30, 50)).shape == (0, 30, 50)


def test_a_mask_is_where_its_logit_is_positive():
    frame = np.tile(np.array([0.1, -0.1], np.float32).repeat(4), (1, 8, 1))
    (mask,) = postprocess.instance_masks(frame, (32, 32), (32, 32))
    assert mask[:, :16].all() and not mask[:, 16:].any()


def test_of_equal_classes_the_first_is_taken():
    assert not postprocess.class_map(np.full((3, 4, 4), 0.5, np.float32), (16, 16), (10, 9)).any()


def test_classes_of_pixels():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0] = 0.2
    maps[1, :, 2:] = 0.9
    maps[2, 0] = 1.5
    found = postprocess.class_map(maps, (16, 16), (16, 16))
    assert found[0, 0] == found[0, 15] == 2 and found[15, 0] == 0 and found[15, 15] == 1


def test_boxes_in_pixels():
    boxes = postprocess.boxes_in_pixels(np.array([[0.5, 0.5, 0.2, 0.4]], np.float32), (100, 50))
    np.testing.assert_allclose(boxes, [[20, 30, 30, 70]], rtol=1e-6)
