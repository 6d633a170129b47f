# SPDX-License-Identifier: Apache-2.0
"""Who looks at whom: pieces against one big mask, and the official masks against the loops that make them."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import randomized
from vllm2_jax.decoders.unipose.sight import Sight, of_figures
from vllm2_jax.nn.multihead import MultiHeadAttention
from vllm2_jax.nn.rngs import Rngs

ROWS, SLOTS, INSTANCES, KEYPOINTS, WIDTH = 2, 3, 4, 5, 8
ASKED = np.arange(KEYPOINTS) < np.array([[5], [2]])


def own_groups():
    """Denoising queries of the box layers: two groups, everything else visible."""
    group = np.array([0, 0, 1])
    mask = np.ones((ROWS, SLOTS, SLOTS + 9), bool)
    mask[:, :, :SLOTS] = group[:, None] == group
    return jnp.asarray(mask)


def dense(faithful):
    """Loops over all pairs, in training."""
    size = 1 + KEYPOINTS
    total = SLOTS + INSTANCES * size
    mask = np.zeros((ROWS, total, total), bool)
    for b in range(ROWS):
        used = np.r_[True, ASKED[b]]
        for row in range(total):
            for column in range(total):
                if row < SLOTS:
                    of_noise = own_groups()[b, row, column] if column < SLOTS else False
                    others = column >= SLOTS and (faithful or used[(column - SLOTS) % size])
                    mask[b, row, column] = of_noise or others
                elif column >= SLOTS:
                    r, c = row - SLOTS, column - SLOTS
                    mask[b, row, column] = r // size == c // size and used[r % size] == used[c % size]
    return jnp.asarray(mask)


@pytest.mark.parametrize("faithful", [False, True])
def test_pieces_are_the_big_mask(faithful):
    attention = randomized(lambda: MultiHeadAttention(WIDTH, 2, dtype=jnp.float32, rngs=Rngs(0)))
    mask = dense(faithful)
    rng = np.random.default_rng(0)
    query, x = (jnp.asarray(rng.normal(size=(ROWS, mask.shape[1], WIDTH)), jnp.float32) for _ in range(2))
    sight = of_figures(Sight(own_groups(), None), jnp.asarray(ASKED), INSTANCES, faithful=faithful)
    want = attention(query, query, x, mask)
    np.testing.assert_allclose(sight(attention, query, x), want, atol=1e-5)


def looped_official(used, groups):
    """The official loops, True = may look: off the diagonal pieces of `size - 1`, on it of `size`."""
    size = len(used)
    short, total = size - 1, groups * size
    mask = np.ones((total, total), bool)
    for row in range(groups * short):
        start = row // short * short
        end = start + short
        mask[row, :start] = False
        if end < groups * short:
            mask[row, end:] = False
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        mask[own, own] = used[:, None] == used
    return mask


def test_outside_of_training():
    right = of_figures(Sight(None, None), jnp.asarray(ASKED), INSTANCES, faithful=False)
    assert right.pieces == INSTANCES and right.inside.shape == (ROWS * INSTANCES, 6, 6)
    found = of_figures(Sight(None, None), jnp.asarray(ASKED), INSTANCES, faithful=True)
    want = np.stack([looped_official(np.r_[True, asked], INSTANCES) for asked in ASKED])
    np.testing.assert_array_equal(found.inside, want)
    assert found.pieces == 1
