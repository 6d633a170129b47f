# SPDX-License-Identifier: Apache-2.0
"""Position tables on other grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.vision.positions import bicubic_weights, resize_positions


def test_weights_of_the_kernel():
    # Twice as fine: sample 5 lies at 5.5 / 2 - 0.5 = 2.25, that is 1.25, 0.25, 0.75 and 1.75 from its taps.
    want = [0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0]
    np.testing.assert_allclose(bicubic_weights(6, 12)[5], want, atol=1e-7)


@pytest.mark.parametrize("old, new", [(4, 6), (6, 4), (5, 5), (3, 11)])
def test_weights_keep_constants_and_symmetry(old, new):
    weights = bicubic_weights(old, new)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)


def test_rows_and_columns_stay_apart():
    grid = jnp.arange(4.0)[:, None] * jnp.ones((4, 4))  # grows from row to row
    table = jnp.concatenate([jnp.full((1, 1), 9.0), grid.reshape(16, 1)])
    resized = resize_positions(table, 8)
    assert resized.shape == (65, 1) and resized[0, 0] == 9
    cells = resized[1:].reshape(8, 8)
    np.testing.assert_allclose(cells, cells[:, :1] * jnp.ones(8), atol=1e-6)
    # Samples 3 and 4 lie at 1.25 and 1.75; this kernel does not keep straight lines straight (-0.5 would).
    np.testing.assert_allclose(cells[3:5, 0], [1.296875, 1.703125], atol=1e-6)


def test_same_grid_is_untouched():
    table = jax.random.normal(jax.random.key(0), (10, 4))
    np.testing.assert_array_equal(resize_positions(table, 3), table)


def test_a_table_without_a_square_grid():
    with pytest.raises(ValueError, match="12 rows is not a class row and a square grid"):
        resize_positions(jnp.zeros((12, 4)), 3)
