# SPDX-License-Identifier: Apache-2.0
"""Masks, references and proposals of levels, cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.ops import levels

SHAPES = ((6, 9), (3, 5))


def masks():
    """Pictures that fill their square, and that fill 4 x 6 of 6 x 9 cells."""
    mask = np.zeros((2, 6, 9), bool)
    mask[0], mask[1, :4, :6] = True, True
    return [levels.shrink(jnp.asarray(mask), shape) for shape in SHAPES]


def test_shrinking_takes_every_nth_cell():
    mask = jnp.asarray(np.random.default_rng(0).random((2, 20, 28)) < 0.5)
    np.testing.assert_array_equal(levels.shrink(mask, (5, 7)), mask[:, ::4, ::4])
    np.testing.assert_array_equal(levels.shrink(mask, (3, 28)), mask[:, [0, 6, 13]])
    # In float32 11 * (26 / 22) is less than 13.
    wide = jnp.arange(26)[None, None] == 12
    assert levels.shrink(wide, (1, 22))[0, 0].tolist() == [cell == 11 for cell in range(22)]


def test_references_reach_the_same_place_on_every_level():
    full, part = levels.valid_ratios(masks())
    np.testing.assert_allclose(full, np.ones((2, 2)))
    np.testing.assert_allclose(part, [[6 / 9, 4 / 6], [4 / 5, 2 / 3]], rtol=1e-6)  # width, height
    ratios = jnp.stack([full, part])
    found = levels.references(SHAPES, ratios)
    assert found.shape == (2, 6 * 9 + 3 * 5, 2, 2)
    cell = found[1, 6 * 9 + 1 * 5 + 3]  # row 1, column 3 of level 1
    share = np.array([3.5 / (5 * 4 / 5), 1.5 / (3 * 2 / 3)])
    np.testing.assert_allclose(cell[0], share * np.array([6 / 9, 4 / 6]), rtol=1e-6)
    np.testing.assert_allclose(cell[1], [3.5 / 5, 1.5 / 3], rtol=1e-6)


def test_proposals():
    logits, usable = levels.proposals(masks())
    for row, (height, width) in enumerate(((6, 9), (4, 6))):
        y, x = np.mgrid[:6, :9]
        inside = ((y < height) & (x < width)).ravel()
        np.testing.assert_array_equal(usable[row, :54], inside)
        boxes = np.stack([(x + 0.5) / width, (y + 0.5) / height, 0 * x + 0.05, 0 * x + 0.05], -1).reshape(
            -1, 4
        )
        boxes = boxes[inside]
        np.testing.assert_allclose(
            logits[row, :54][inside], np.log(boxes / (1 - boxes)), rtol=1e-4, atol=1e-6
        )
        assert np.isposinf(logits[row, :54][~inside]).all()
    np.testing.assert_allclose(logits[0, 54, 2:], np.log(0.1 / 0.9), rtol=1e-5)  # twice as large on level 1


def test_boxes_of_every_level_are_twice_as_large():
    logits, usable = jax.jit(levels.proposals)([jnp.ones((1, 1, 1), bool)] * 6)
    sides = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
    np.testing.assert_allclose(logits[0, :5, 2], np.log(sides / (1 - sides)), rtol=1e-4)
    assert usable[0].tolist() == [True] * 5 + [False]  # 1.6


def test_proposals_too_close_to_the_border_are_not_used():
    _, usable = levels.proposals([jnp.ones((1, 3, 60), bool)])
    usable = np.asarray(usable).reshape(3, 60)
    assert not usable[:, [0, 59]].any()  # 0.5 / 60 is less than 0.01
    assert usable[:, 1:59].all()
    empty, none = levels.proposals([jnp.zeros((1, 2, 2), bool)])
    assert not none.any()
    assert np.isposinf(empty).all()
