# SPDX-License-Identifier: Apache-2.0
"""Swin: windows, padding, dropped branches, weights by both official spellings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import randomized
from vllm2_jax.convert import swin as convert
from vllm2_jax.convert.rules import export, load
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.swin import SWIN, Swin, SwinConfig, distances, from_windows, same_region, to_windows

SMALL = SwinConfig(width=8, depths=(1, 2, 2), heads=(1, 2, 4), window=3, mlp_ratio=2.0, stages=(0, 2))


def make(config=SMALL, **options):
    return randomized(lambda: Swin(config, dtype=jnp.float32, rngs=Rngs(0), **options))


apply = jax.jit(Swin.__call__)


def pictures(height=29, width=42, rows=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, height, width, 3)), jnp.float32)


def test_maps_of_odd_pictures():
    first, last = apply(make(), pictures())
    assert first.shape == (2, 8, 11, 8)  # 29 and 42 pixels, rounded up to cells of 4
    assert last.shape == (2, 2, 3, 32)  # 8 x 11 -> 4 x 6 -> 2 x 3
    assert SMALL.channels == (8, 32)


def test_zeros_at_the_right_and_bottom_pad_to_whole_cells():
    x = pictures()
    padded = jnp.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)))
    for a, b in zip(apply(make(), x), apply(make(), padded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_window_sees_itself_only():
    """With one unshifted block, a changed pixel changes the cells of its window and no others."""
    model = make(dataclasses.replace(SMALL, depths=(1,), heads=(1,), stages=(0,)))
    x = pictures(36, 36, rows=1)
    moved = (
        np.abs(apply(model, x)[0] - apply(model, x.at[0, 17, 2].add(1))[0]).max(-1)[0] > 1e-6
    )  # cell (4, 0)
    want = np.zeros((9, 9), bool)
    want[3:6, 0:3] = True
    np.testing.assert_array_equal(moved, want)


def test_shifted_windows_do_not_join_opposite_borders():
    model = make(dataclasses.replace(SMALL, depths=(2,), heads=(1,), stages=(0,)))
    x = pictures(36, 36, rows=1)
    moved = np.abs(apply(model, x)[0] - apply(model, x.at[0, 0, 0].add(1))[0]).max(-1)[0] > 1e-6
    want = np.zeros((9, 9), bool)
    want[:4, :4] = True  # window 0..2, then windows that start at 1 - 3 and 1: up to row 3
    np.testing.assert_array_equal(moved, want)


def test_windows_and_back():
    x = jnp.arange(2 * 6 * 9).reshape(2, 6, 9, 1).astype(jnp.float32)
    windows = to_windows(x, 3)
    assert windows.shape == (2, 6, 9, 1)
    np.testing.assert_array_equal(windows[0, 1, :, 0], [3, 4, 5, 12, 13, 14, 21, 22, 23])
    np.testing.assert_array_equal(from_windows(windows, (6, 9)), x)


def test_distances_and_regions():
    table = distances(3)
    assert table[0, 0] == table[4, 4] == 12  # the middle of 5 x 5
    assert table[0, 8] == 0  # two rows up, two columns to the left
    assert table[8, 0] == 24
    assert table[1, 0] == 13
    same = same_region((6, 6), 3, 1)
    assert same[0].all()
    np.testing.assert_array_equal(same[1, 0].reshape(3, 3), [[1, 1, 0]] * 3)  # the last column came around
    np.testing.assert_array_equal(same[3, 8].reshape(3, 3), [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("drop", ["attention", "linear"])
def test_dropped_branches(drop):
    config = dataclasses.replace(SMALL, drop_path=0.5, drop=drop)
    model = make(config)
    x = jnp.repeat(pictures(rows=1), 16, axis=0)
    plain = apply(model, x)[1]
    np.testing.assert_array_equal(plain[0], plain[-1])
    dropped = apply(model, x, key=jax.random.key(0))[1]
    assert len(np.unique(np.asarray(dropped).reshape(16, -1)[:, 0])) > 4  # every row draws for itself
    np.testing.assert_array_equal(dropped, apply(model, x, key=jax.random.key(0))[1])
    kept = make(dataclasses.replace(config, drop_path=0.0))
    np.testing.assert_allclose(apply(kept, x, key=jax.random.key(0))[1], plain, atol=1e-6)


def test_rates_of_dropping():
    assert SWIN["tiny"].drop_rates(1) == [(0.1, 0.0)] * 2
    linear = dataclasses.replace(SWIN["tiny"], drop_path=0.2, drop="linear")
    rates = [rate for stage in range(4) for rate in linear.drop_rates(stage)]
    np.testing.assert_allclose(rates, np.stack([np.linspace(0, 0.2, 12)] * 2, axis=1))


def test_remat_changes_nothing():
    def gradients(remat):
        model = make(remat=remat)

        def loss(model):
            return sum((x**2).mean() for x in model(pictures(), key=jax.random.key(1)))

        return jax.jit(jax.grad(loss))(model)

    plain, again = (flatten_paths(gradients(remat))[0] for remat in ("none", "full"))
    for path, leaf in plain.items():
        np.testing.assert_allclose(leaf, again[path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("table", [convert.transformers_table, convert.original_table])
def test_weights_go_out_and_come_back(table):
    model = make()
    names = export(model, table(SMALL))
    back = load(names, table(SMALL), jax.eval_shape(make))
    for (path, leaf), again in zip(
        flatten_paths(model)[0].items(), flatten_paths(back)[0].values(), strict=True
    ):
        np.testing.assert_array_equal(leaf, again, err_msg=path)


def test_sizes_of_the_released_models():
    counts = {}
    for name, config in SWIN.items():
        abstract = jax.eval_shape(lambda config=config: Swin(config, dtype=jnp.float32, rngs=Rngs(0)))
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    # Of "tiny": the sum over the official table of parameters.
    assert counts == {"tiny": 27_520_698, "base": 86_880_376, "large": 195_201_204}


def test_impossible_sizes():
    with pytest.raises(ValueError, match="attention, linear"):
        SwinConfig(drop="mlp")
    with pytest.raises(ValueError, match="do not fit"):
        SwinConfig(depths=(2, 2), heads=(1, 2), stages=(2,))
