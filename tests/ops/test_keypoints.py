# SPDX-License-Identifier: Apache-2.0
"""Keypoint similarity and distance against loops."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.ops.keypoints import SIGMAS, oks, visible_l1


def draw(seed=0, objects=5, count=6):
    rng = np.random.default_rng(seed)
    truth = rng.random((objects, count, 2)).astype(np.float32)
    points = truth + rng.normal(0, 0.03, truth.shape).astype(np.float32)
    visible = rng.random((objects, count)) < 0.6
    visible[0] = False
    area = rng.uniform(0.02, 0.5, objects).astype(np.float32)
    return tuple(map(jnp.asarray, (points, truth, visible, area)))


def looped(points, truth, visible, area):
    total = shown = distance = 0.0
    for k in range(len(points)):
        if visible[k]:
            d = np.asarray(points[k] - truth[k], np.float64)
            total += np.exp(-(d @ d) / (2 * float(area) * (2 * float(SIGMAS[k])) ** 2))
            distance += np.abs(d).sum()
            shown += 1
    return max(total / (shown + 1e-6), 1e-6), distance


def test_pairs_and_tables():
    points, truth, visible, area = draw()
    sigmas = jnp.asarray(SIGMAS[:6])
    similarity = oks(points, truth, visible, area, sigmas)
    table = oks(points[:, None], truth[None], visible[None], area[None], sigmas)
    far = visible_l1(points[:, None], truth[None], visible[None])
    for i in range(5):
        for j in range(5):
            want, distance = looped(points[i], truth[j], visible[j], area[j])
            np.testing.assert_allclose(table[i, j], want, rtol=1e-4)
            np.testing.assert_allclose(far[i, j], distance, rtol=1e-5)
        np.testing.assert_allclose(similarity[i], table[i, i], rtol=1e-6)
    np.testing.assert_allclose(similarity[0], 1e-6)


def test_invisible_keypoints_have_no_gradient():
    points, truth, visible, area = draw(1)
    sigmas = jnp.asarray(SIGMAS[:6])

    def total(points):
        return (oks(points, truth, visible, area, sigmas) + visible_l1(points, truth, visible)).sum()

    gradient = jax.grad(total)(points)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal((gradient != 0).any(-1), visible)


def test_spreads():
    assert SIGMAS.shape == (68,)
    # Nose, eyes, ears; shoulders, elbows, wrists; hips, knees, ankles: COCO's.
    face, arms = [0.026, 0.025, 0.025, 0.035, 0.035], [0.079, 0.079, 0.072, 0.072, 0.062, 0.062]
    legs = [0.107, 0.107, 0.087, 0.087, 0.089, 0.089]
    np.testing.assert_allclose(SIGMAS, [*face, *arms, *legs, *[0.025] * 51], rtol=1e-6)
