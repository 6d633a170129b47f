# SPDX-License-Identifier: Apache-2.0
"""Box formats and overlaps against boxes counted by hand and cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.ops import boxes


def counted(a, b, size=40):
    """Intersection, union and hull of two boxes with whole-numbered corners, in cells."""
    y, x = np.mgrid[:size, :size]

    def inside(box):
        return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])

    hull = np.concatenate([np.minimum(a, b)[:2], np.maximum(a, b)[2:]])
    return (inside(a) & inside(b)).sum(), (inside(a) | inside(b)).sum(), inside(hull).sum()


@pytest.fixture
def corners():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 25, (2, 6, 2))
    return np.concatenate([first, first + rng.integers(1, 15, (2, 6, 2))], axis=-1)


def test_formats_are_each_others_inverse():
    box = jnp.array([10.0, 20, 4, 6])
    np.testing.assert_array_equal(boxes.cxcywh_to_xyxy(box), [8, 17, 12, 23])
    np.testing.assert_array_equal(boxes.xyxy_to_cxcywh(boxes.cxcywh_to_xyxy(box)), box)
    assert boxes.area(boxes.cxcywh_to_xyxy(box)) == 24


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_overlaps_equal_counted_cells(corners, eps):
    a, b = corners[:, :4], corners[:, 2:]
    generalised = boxes.giou(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), eps=eps)
    assert generalised.shape == (2, 4, 4)
    for row, i, j in np.ndindex(2, 4, 4):
        inner, outer, hull = counted(a[row, i], b[row, j])
        want = inner / (outer + eps) - (hull - outer) / (hull + eps)
        np.testing.assert_allclose(generalised[row, i, j], want, rtol=1e-5, atol=1e-6)


def test_pairs_are_the_diagonal(corners):
    a, b = jnp.asarray(corners[0], jnp.float32), jnp.asarray(corners[1], jnp.float32)
    np.testing.assert_allclose(boxes.paired_giou(a, b), jnp.diagonal(boxes.giou(a, b)))


def test_boxes_without_area_have_finite_values_and_gradients():
    empty = jnp.zeros((2, 4))
    other = jnp.array([[0.0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]])

    def total(a):
        return boxes.paired_giou(a, other).sum() + boxes.giou(a, other).sum()

    value, gradient = jax.value_and_grad(total)(empty)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_inverse_sigmoid():
    x = jnp.array([0.2, 0.5, 0.97])
    np.testing.assert_allclose(jax.nn.sigmoid(boxes.inverse_sigmoid(x, 1e-5)), x, rtol=1e-6)
    got = boxes.inverse_sigmoid(jnp.array([-0.5, 0.0, 0.01, 1.0, 3.0]), 0.05)
    low, high = np.log(0.05), np.log(1 / 0.05)
    np.testing.assert_allclose(got, [low, low, np.log(0.05 / 0.99), high, high], rtol=1e-6)


def test_inverse_sigmoid_passes_the_gradient_of_the_unclamped_part():
    def slope(x):
        return float(jax.grad(lambda x: boxes.inverse_sigmoid(x, 0.05))(x))

    np.testing.assert_allclose(slope(0.2), 1 / 0.2 + 1 / 0.8, rtol=1e-6)
    np.testing.assert_allclose(slope(0.02), 1 / 0.98, rtol=1e-6)  # the numerator is held at eps
    assert slope(1.0) == 1.0  # at the bound PyTorch's clamp still lets it through
    assert slope(1.5) == slope(-0.5) == 0
