# SPDX-License-Identifier: Apache-2.0
"""Reading masks between pixels, against a loop over four neighbours; and the choice of undecided points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.ops import masks


def looked_up(image, point):
    """Bilinear with zeros outside, pixel by pixel."""
    h, w = image.shape
    x, y = point[0] * w - 0.5, point[1] * h - 0.5
    total = 0.0
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < h and 0 <= column < w:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@pytest.mark.parametrize("shared", [True, False])
def test_reads_between_pixels(shared):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    points = rng.random((2, 1 if shared else 3, 40, 2)).astype(np.float32)
    points[:, :, :4] = [(0, 0), (1, 1), (0, 1), (1, 0)]  # the corners of the map, where a quarter is left
    got = np.asarray(jax.jit(masks.read)(maps, points))
    for b, n, p in np.ndindex(got.shape):
        want = looked_up(maps[b, n], points[b, 0 if shared else n, p])
        assert got[b, n, p] == pytest.approx(want, abs=1e-5)
    np.testing.assert_allclose(got[..., 0], maps[..., 0, 0] / 4, rtol=1e-6)


def test_gradient_of_reading_spreads_over_four_pixels():
    point = jnp.array([[[[0.4, 0.7]]]])  # x = 1.1, y = 2.3 in a map of 4 x 4
    gradient = jax.grad(lambda x: masks.read(x, point).sum())(jnp.zeros((1, 1, 4, 4)))[0, 0]
    want = np.zeros((4, 4))
    want[2:4, 1:3] = np.outer([0.7, 0.3], [0.9, 0.1])
    np.testing.assert_allclose(gradient, want, atol=1e-6)


def test_truth_of_another_size_is_read_at_the_same_places():
    # The left half is inside: at any resolution, points left of the middle read 1 and right of it 0.
    small, large = (np.zeros((1, 1, side, side), np.uint8) for side in (8, 32))
    small[..., :4], large[..., :16] = 1, 1
    points = jnp.array([[[[0.2, 0.5], [0.8, 0.5]]]])
    for truth in (small, large):
        np.testing.assert_allclose(masks.read(jnp.asarray(truth), points)[0, 0], [1, 0])


def test_undecided_points_are_compared_and_all_random_ones():
    points = masks.draw_points(jax.random.key(0), (1, 1), 20, oversample=3.0, importance=0.75)
    assert points.candidates.shape == (1, 1, 60, 2) and points.random.shape == (1, 1, 5, 2)
    # The logit is the x coordinate: two masks whose undecided points lie in different places.
    across = np.broadcast_to(np.linspace(-1, 1, 64, dtype=np.float32), (64, 64))
    logits = jnp.asarray(np.stack([across, across + 0.5])[None])
    truth = jnp.asarray((across > 0).astype(np.uint8)[None, None].repeat(2, 1))
    found, wanted = masks.at_points(logits, truth, points, 20)
    assert found.shape == wanted.shape == (1, 2, 20)
    for n in range(2):
        values = np.abs(np.asarray(masks.read(logits, points.candidates))[0, n])
        np.testing.assert_allclose(np.sort(np.abs(found[0, n, :15])), np.sort(values)[:15], rtol=1e-6)
        fresh = np.asarray(masks.read(logits, points.random))[0, n]
        np.testing.assert_allclose(found[0, n, 15:], fresh, rtol=1e-6)
    # Truth is read at the same points: where the first mask's logit is clearly right of 0, it is 1.
    clear = np.abs(found[0, 0]) > 0.05
    np.testing.assert_array_equal(np.asarray(wanted[0, 0])[clear] > 0.5, np.asarray(found[0, 0])[clear] > 0)


def test_own_points_and_shared_points_agree():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(2, 4, 9, 6)).astype(np.float32))
    truth = jnp.asarray((rng.random((2, 4, 18, 12)) < 0.5).astype(np.uint8))
    shared = masks.draw_points(jax.random.key(1), (2, 1), 16, oversample=2.0, importance=0.5)
    own = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 4, *x.shape[2:])), shared)

    def compare(logits, points):
        found, wanted = masks.at_points(logits, truth, points, 16)
        return (found * wanted).sum()

    one, other = (jax.value_and_grad(compare)(logits, points) for points in (shared, own))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)
