# SPDX-License-Identifier: Apache-2.0
"""The region encoder: closed form, drawn pixels, empty masks. Values are compared in test_golden."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights import randomized
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.regions import RegionConfig, RegionEncoder, draw_pixels, mean_weights, sampling_weights

CONFIG = RegionConfig(hidden=8, width=16, width_out=5, patch=4)
SIZE, GRID = 24, 6


@functools.cache
def build(config=CONFIG, dtype=jnp.float32):
    return randomized(lambda: RegionEncoder(config, dtype=dtype, rngs=Rngs(0)))


def scene(regions=3, levels=3):
    keys = jax.random.split(jax.random.key(7), 1 + levels)
    images = jax.random.normal(keys[0], (regions, SIZE, SIZE, 3))
    features = tuple(jax.random.normal(key, (regions, GRID * GRID, 16)) for key in keys[1:])
    masks = np.zeros((regions, SIZE, SIZE), np.uint8)
    for i in range(regions):
        masks[i, 2 * i : 9 + 3 * i, 4 : 20 - i] = 1
    return images, jnp.asarray(masks), features


def test_weights_are_bilinear_sampling_at_the_corners_of_pixels():
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, 13, 6] = mask[0, 0, 0] = 1
    want = np.zeros((GRID, GRID))
    # Pixel (13, 6) lies at 13 / 4 - 0.5 = 2.75 and 6 / 4 - 0.5 = 1 of the map; pixel (0, 0) at (-0.5, -0.5),
    # where three of its four cells are outside and count as zero.
    want[2, 1], want[3, 1], want[0, 0] = 0.25, 0.75, 0.25
    np.testing.assert_allclose(sampling_weights(jnp.asarray(mask), 4)[0], want / 2, atol=1e-6)


def test_mean_counts_all_cells():
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, :8, :4] = 1  # two cells, whole
    weights = mean_weights(jnp.asarray(mask, jnp.float32), 4)[0]
    assert weights[0, 0] == weights[1, 0] == pytest.approx(1 / 36) and float(weights.sum()) == pytest.approx(
        2 / 36
    )


def test_running_sum_over_levels():
    # Spelled out as the official code does it, level by level.
    encoder, (images, masks, features) = build(), scene()
    both = jnp.concatenate([images, masks[..., None].astype(jnp.float32)], axis=-1)
    weights, running, want = sampling_weights(masks, 4), encoder.mask_embedding(both), 0
    for feature in features:
        running = running + feature.reshape(running.shape)
        want = want + encoder.out(jnp.einsum("nhw,nhwv->nv", weights, running)) / 3
    np.testing.assert_allclose(encoder(images, masks, features), want, atol=1e-5)


@pytest.mark.parametrize("pooling", ["grid_sample", "mean"])
def test_empty_regions_give_the_bias_and_finite_gradients(pooling):
    encoder = build(dataclasses.replace(CONFIG, pooling=pooling, samples=9))
    images, masks, features = scene()
    masks = masks.at[1].set(0)
    graph, params = nnx.split(encoder)

    def loss(params, features):
        out = nnx.merge(graph, params)(images, masks, features, key=jax.random.key(0))
        return (out**2).sum(), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, features)
    np.testing.assert_allclose(out[1], encoder.out.bias[...], atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all((gradient[1] == 0).all() and (gradient[0] != 0).any() for gradient in gradients[1])


def test_regions_do_not_see_each_other():
    encoder, (images, masks, features) = build(), scene()
    order = jnp.array([2, 0, 1])
    shuffled = encoder(images[order], masks[order], tuple(f[order] for f in features))
    np.testing.assert_allclose(shuffled, encoder(images, masks, features)[order], atol=1e-5)


def test_drawn_pixels_are_exactly_so_many_inside_the_mask():
    _, masks, _ = scene()
    drawn = draw_pixels(masks.astype(jnp.float32), 3, 120, jax.random.key(0))
    counts = np.asarray(masks, int).sum((1, 2))
    assert counts[0] > 120
    np.testing.assert_array_equal(drawn.sum((2, 3)), np.broadcast_to(np.minimum(counts, 120), (3, 3)))
    assert not np.any(np.asarray(drawn) * (1 - np.asarray(masks)))
    assert (drawn[0] != drawn[1]).any()  # each level draws anew
    small = draw_pixels(masks.at[0, 5:].set(0).astype(jnp.float32), 2, 120, jax.random.key(0))
    np.testing.assert_array_equal(small[:, 0].sum((1, 2)), [80, 80])  # all of 5 rows and 16 columns


def test_draws_follow_the_key_and_average_to_the_closed_form():
    encoder = build(dataclasses.replace(CONFIG, samples=30))
    images, masks, features = scene()
    draw = jax.jit(lambda key: encoder(images, masks, features, key=key))
    np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.key(1)))
    exact = encoder(images, masks, features)
    np.testing.assert_array_equal(exact, build()(images, masks, features, key=jax.random.key(1)))
    many = jnp.stack([draw(key) for key in jax.random.split(jax.random.key(2), 400)])
    spread = many.std(0)
    assert (spread > 1e-3).all()
    assert (jnp.abs(many.mean(0) - exact) < 5 * spread / 20).all()


def test_recorded_pixels_replace_the_mask_in_pooling_only():
    encoder, (images, masks, features) = build(), scene()
    whole = jnp.broadcast_to(masks.astype(jnp.float32), (3, *masks.shape))
    np.testing.assert_allclose(
        encoder(images, masks, features, sampled_masks=whole), encoder(images, masks, features), atol=1e-5
    )
    less = whole.at[2, :, 4:].set(0)
    assert (
        jnp.abs(encoder(images, masks, features, sampled_masks=less) - encoder(images, masks, features)) > 0
    ).any()


def test_bfloat16_is_close():
    images, masks, features = scene()
    out = build(dtype=jnp.bfloat16)(images, masks, tuple(f.astype(jnp.bfloat16) for f in features))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), build()(images, masks, features), atol=0.05)


def test_what_is_refused():
    images, masks, features = scene()
    query = build(dataclasses.replace(CONFIG, pooling="cross_attn"))
    assert query(images, masks, features[:1]).shape == (3, 5)
    with pytest.raises(ValueError, match="one level, not 3"):
        query(images, masks, features)
    with pytest.raises(ValueError, match="this is mean"):
        mean = build(dataclasses.replace(CONFIG, pooling="mean"))
        mean(images, masks, features, sampled_masks=jnp.ones((3, *masks.shape)))
    with pytest.raises(ValueError, match="'max' is none of"):
        RegionConfig(pooling="max")
    with pytest.raises(ValueError, match="patch 7 must be even"):
        RegionConfig(patch=7)
