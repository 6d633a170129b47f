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


def test_reads_between_pixels():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    points = rng.random((2, 40, 2)).astype(np.float32)
    points[:, :4] = [(0, 0), (1, 1), (0, 1), (1, 0)]  # the corners of the map, where a quarter is left
    got = np.asarray(jax.jit(masks.read)(maps, points))
    for b, p, c in np.ndindex(got.shape):
        assert got[b, p, c] == pytest.approx(looked_up(maps[b, ..., c], points[b, p]), abs=1e-5)
    np.testing.assert_allclose(got[:, 0], maps[:, 0, 0] / 4, rtol=1e-6)


def test_gradient_of_reading_spreads_over_four_pixels():
    point = jnp.array([[[0.4, 0.7]]])  # x = 1.1, y = 2.3 in a map of 4 x 4
    gradient = jax.grad(lambda x: masks.read(x, point).sum())(jnp.zeros((1, 4, 4, 1)))[0, ..., 0]
    want = np.zeros((4, 4))
    want[2:4, 1:3] = np.outer([0.7, 0.3], [0.9, 0.1])
    np.testing.assert_allclose(gradient, want, atol=1e-6)


def test_truth_of_another_size_is_read_at_the_same_places():
    # The left half is inside: at any resolution, points left of the middle read 1 and right of it 0.
    small, large = (np.zeros((1, side, side, 1), np.uint8) for side in (8, 32))
    small[:, :, :4], large[:, :, :16] = 1, 1
    points = jnp.array([[[0.2, 0.5], [0.8, 0.5]]])
    for truth in (small, large):
        np.testing.assert_allclose(masks.read(jnp.asarray(truth), points)[0, :, 0], [1, 0])


@pytest.mark.parametrize("count", [1, 7, 30])
def test_undecided_are_those_of_a_stable_sort(count):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 30)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (2, 3, 30))
    logits[0, 0] = 0  # all equal: the first ones
    logits[0, 1] = np.repeat([3, -0.5, 0.5, 2, -2, 1], 5)
    logits[1, 2, ::2] = 0
    got = np.asarray(jax.jit(masks.undecided, static_argnums=1)(logits, count))
    want = np.zeros_like(got)
    order = np.argsort(np.abs(logits), axis=-1, kind="stable")[..., :count]
    np.put_along_axis(want, order, True, axis=-1)
    np.testing.assert_array_equal(got, want)


def test_undecided_points_are_compared_and_all_random_ones():
    points = masks.draw_points(jax.random.key(0), (1, 1), 20, oversample=3.0, importance=0.75)
    assert points.candidates.shape == (1, 1, 60, 2) and points.random.shape == (1, 1, 5, 2)
    # Features are the x coordinate and 1: two masks whose undecided points lie in different places.
    across = jnp.broadcast_to(jnp.linspace(-1, 1, 64), (64, 64))
    truth = (across > 0).astype(jnp.uint8)[None, None].repeat(2, 1)
    features = jnp.stack([across, jnp.full_like(across, 1.0)], axis=-1)[None]
    samples = masks.at_points(features, truth, points)
    found = samples.logits(jnp.array([[[1.0, 0.0], [1.0, 0.5]]]))
    chosen = np.asarray(samples.chosen(found, 20))
    assert found.shape == samples.truth.shape == chosen.shape == (1, 2, 65)
    places = np.concatenate([points.candidates, points.random], axis=2)[0, 0]
    values = [looked_up(np.asarray(across), point) for point in places]
    ones = [looked_up(np.ones((64, 64)), point) for point in places]
    np.testing.assert_allclose(found[0], [values, np.add(values, np.multiply(ones, 0.5))], atol=1e-6)
    assert chosen[..., 60:].all() and (chosen[..., :60].sum(-1) == 15).all()
    for distance, taken in zip(np.abs(found[0, :, :60]), chosen[0, :, :60], strict=True):
        assert distance[taken].max() < distance[~taken].min()
    assert (chosen[0, 0] != chosen[0, 1]).any()
    clear = np.abs(values) > 0.05
    np.testing.assert_array_equal(np.asarray(samples.truth[0, 0])[clear] > 0.5, np.asarray(values)[clear] > 0)


def test_own_points_and_shared_points_agree_with_whole_masks():
    rng = np.random.default_rng(1)
    sizes = (2, 9, 6, 5), (2, 4, 5)
    features, embeddings = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    truth = jnp.asarray((rng.random((2, 4, 18, 12)) < 0.5).astype(np.uint8))
    shared = masks.draw_points(jax.random.key(1), (2, 1), 16, oversample=2.0, importance=0.5)
    own = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 4, *x.shape[2:])), shared)

    def compare(features, embeddings, points):
        samples = masks.at_points(features, truth, points)
        logits = samples.logits(embeddings)
        return (logits * samples.truth * samples.chosen(logits, 16)).sum()

    def whole(features, embeddings):
        logits = jnp.einsum("bnm,bhwm->bhwn", embeddings, features)
        places = jnp.concatenate([shared.candidates, shared.random], axis=-2)[:, 0]
        read = masks.read(logits, places).swapaxes(1, 2)
        wanted = masks.read(jnp.moveaxis(truth, 1, -1), places).swapaxes(1, 2)
        taken = masks.undecided(read[..., :32], 8)
        return (read * wanted).at[..., :32].multiply(taken).sum()

    value, gradients = jax.value_and_grad(whole, argnums=(0, 1))(features, embeddings)
    for points in (shared, own):
        got, of_points = jax.value_and_grad(compare, argnums=(0, 1))(features, embeddings, points)
        np.testing.assert_allclose(got, value, rtol=1e-5)
        for one, other in zip(of_points, gradients, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
