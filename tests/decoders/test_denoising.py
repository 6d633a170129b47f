# SPDX-License-Identifier: Apache-2.0
"""Denoising slots against a loop that lays the groups out one after the other."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.decoders import denoising

NUMBER, CAPACITY = 5, 3  # 10 slots
COUNTS = np.array([2, 0, 3, 1])


def layout(places):
    make = jax.jit(denoising.lay_out, static_argnums=(2, 3))
    return make(jnp.asarray(COUNTS), jnp.asarray(places), NUMBER, CAPACITY)


def looped(count, places, slots):
    """(group, target, real, live, positive) of every live slot."""
    out = []
    for group in range(max(NUMBER // places, 1) if places else 0):
        for positive in (True, False):
            out += [(group, target, target < count, positive) for target in range(places)]
    assert len(out) <= slots
    return out


def test_groups_fit_each_row():
    for places in (COUNTS, np.full(4, COUNTS.max())):
        found = layout(places)
        for b, (count, room) in enumerate(zip(COUNTS, places, strict=True)):
            want = looped(count, room, 10)
            n = len(want)
            assert found.live[b].tolist() == [True] * n + [False] * (10 - n)
            assert found.groups[b] == max(NUMBER // max(room, 1), 1)
            fields = zip(found.group[b], found.target[b], found.real[b], found.positive[b], strict=True)
            assert [tuple(slot) for slot in fields][:n] == want
            assert not found.real[b, n:].any()
            np.testing.assert_array_equal(found.matched[b], found.real[b] & found.positive[b])


def test_dead_slots_are_seen_by_no_live_one():
    found = layout(COUNTS)
    looks = np.asarray(denoising.sees(found, 4))
    assert looks.shape == (4, 10, 14)
    assert looks[..., 10:].all()
    for b in range(4):
        assert not looks[b, :, :10][found.live[b]][:, ~found.live[b]].any()
        same = found.group[b][:, None] == found.group[b]
        np.testing.assert_array_equal(looks[b, :, :10], same)


def test_draws_follow_the_key_alone():
    one, same, other = (denoising.draw(jax.random.key(i), 3, 200, 1000) for i in (0, 0, 1))
    for a, b, c in zip(*map(jax.tree.leaves, (one, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        for x, y in ((a, c), (a[0], a[1])):  # another key, another row
            assert abs(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]) < 0.15
    fields = [np.ravel(x)[:600] for x in jax.tree.leaves(one)]  # of one key they would be alike
    assert np.abs(np.corrcoef(fields) - np.eye(4)).max() < 0.15
    for uniform in (one.flip, one.size, one.label / 1000):
        assert abs(uniform.mean() - 0.5) < 0.05 and 0 <= uniform.min() and 0.95 < uniform.max() < 1


def test_positives_move_less_than_negatives():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0.4, 0.6, (4, 3, 2)), rng.uniform(0.1, 0.2, (4, 3, 2))], -1)
    labels = jnp.asarray(rng.integers(0, 7, (4, 3)))
    found = denoising.lay_out(jnp.asarray(COUNTS), jnp.asarray(COUNTS), NUMBER, CAPACITY)
    draws = denoising.draw(jax.random.key(0), 4, 10, 7)
    assert set(np.unique(draws.sign)) == {-1.0, 1.0}
    assert np.unique(draws.label).min() >= 0 and np.unique(draws.label).max() < 7
    noisy, logits = denoising.disturb(
        found, draws, jnp.asarray(boxes, jnp.float32), labels, label_noise=0.5, box_noise=1.0, eps=1e-3
    )
    box = np.asarray(jax.nn.sigmoid(logits))
    corners = np.concatenate([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)
    truth = np.take_along_axis(boxes, np.asarray(found.target)[..., None], 1)
    half = np.concatenate([truth[..., 2:]] * 2, -1) / 2
    moved = (corners - np.concatenate([truth[..., :2]] * 2, -1)) / half * np.array([-1, -1, 1, 1]) - 1
    moved = moved * np.asarray(draws.sign) * np.array([-1, -1, 1, 1])
    want = np.asarray(draws.size + ~found.positive[..., None])
    upright = (box[..., 2:] > 2e-3).all(-1) & found.real  # the others were turned over and cut off
    assert upright.sum() > 10
    np.testing.assert_allclose(moved[upright], want[upright], atol=2e-3)
    assert (logits[~found.real] == 0).all() and (noisy[~found.real] == 0).all()
    clean = jnp.take_along_axis(labels, found.target, 1)
    np.testing.assert_array_equal(
        noisy, np.where(found.real, np.where(draws.flip < 0.25, draws.label, clean), 0)
    )
