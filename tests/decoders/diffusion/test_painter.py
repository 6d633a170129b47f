# SPDX-License-Identifier: Apache-2.0
"""Losses and pictures of both decoders: what a row depends on, and what it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoders.diffusion.tiny import config, links, make, painter, targets
from tests.weights import randomized
from vllm2_jax.batch import Links
from vllm2_jax.decoders.decoder import Decoder
from vllm2_jax.decoders.diffusion.config import SamplingConfig, ScheduleConfig
from vllm2_jax.decoders.diffusion.painter import as_bytes, row_keys
from vllm2_jax.decoders.diffusion.samplers import make_plan
from vllm2_jax.decoders.diffusion.schedule import kept_share
from vllm2_jax.decoders.diffusion.targets import Request, read_targets

BOTH = pytest.mark.parametrize("edits", [False, True], ids=["generation", "editing"])


@jax.jit
def losses(painter, links, targets):
    return painter.loss(links, targets, key=jax.random.key(1))


@jax.jit
def pictures(painter, links, request, key):
    return painter.predict(links, request, key=key)


@BOTH
def test_terms_count_links_and_captions(edits):
    found = losses(painter(edits), links(3), targets(3, edits=edits))
    assert isinstance(painter(edits), Decoder)
    assert set(found) == {"noise", "caption"}
    assert [float(weight) for _, weight in found.values()] == [3, 3]
    fewer = targets(3, edits=edits) | {"has_caption": jnp.array([True, False, True])}
    asked = dataclasses.replace(links(3), valid=jnp.array([[True], [True], [False]]))
    found = losses(painter(edits), asked, fewer)
    assert float(found["noise"][1]) == 2
    assert float(found["caption"][1]) == 1
    none = dataclasses.replace(links(3), valid=jnp.zeros((3, 1), bool))
    assert all(float(x) == 0 for pair in losses(painter(edits), none, fewer).values() for x in pair)


@BOTH
def test_given_moments_and_text_states_replace_pictures_and_captions(edits):
    found = targets(2, edits=edits)
    want = losses(painter(edits), links(2), found)
    ready = {
        "moments": painter(edits).moments(found["image"], None),
        "caption_states": painter(edits).text(found["caption"]),
        "has_caption": found["has_caption"],
    }
    if edits:
        ready["input_moments"] = painter(edits).moments(found["input"], None)
    got = losses(painter(edits), links(2), ready)
    for name, (value, _) in want.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-5)


@BOTH
def test_gradients_reach_the_links_through_the_unet(edits):
    hears = randomized(lambda: make(edits=edits, drop_rate=0.0), std=0.1)

    def noise(states, targets):
        asked = dataclasses.replace(links(3), states=states, valid=jnp.array([[True], [False], [True]]))
        return hears.loss(asked, targets, key=jax.random.key(1))["noise"][0]

    found = jax.jit(jax.grad(noise))(links(3).states, targets(3, edits=edits))
    size = jnp.abs(found).sum((1, 2, 3))
    assert float(size[0]) > 1e-6
    assert float(size[2]) > 1e-6
    assert float(size[1]) == 0


@BOTH
def test_links_of_one_row_share_its_picture(edits):
    row = targets(1, edits=edits)
    twice = {name: jnp.repeat(x, 2, axis=0) for name, x in row.items()}
    flat = links(2)
    both = Links(flat.states.reshape(1, 2, *flat.states.shape[2:]), jnp.ones((1, 2), bool))
    one, other = losses(painter(edits), both, row), losses(painter(edits), flat, twice)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@BOTH
def test_several_noisy_versions_of_a_picture(edits):
    """They are worth as many rows with the same link and picture, and the caption counts once."""
    several = randomized(lambda: make(edits=edits, draws=3), std=0.1)
    row, asked, key = targets(2, edits=edits), links(2), jax.random.key(1)
    repeated = {name: jnp.repeat(x, 3, axis=0) for name, x in row.items()}
    flat = Links(jnp.repeat(asked.states, 3, axis=0), jnp.ones((6, 1), bool))
    one, other = several.loss(asked, row, key=key), painter(edits).loss(flat, repeated, key=key)
    assert [float(weight) for _, weight in one.values()] == [6, 2]
    np.testing.assert_allclose(one["noise"][0], other["noise"][0], rtol=1e-5)
    np.testing.assert_allclose(one["caption"][0] * 3, other["caption"][0], rtol=1e-5)


@BOTH
def test_noisy_rows_may_count_more(edits):
    """With p = 1 the loss is that of the latents' velocity: 1 / A_t times that of the noise."""
    plain, row = painter(edits), read_targets(targets(1, edits=edits), edits=edits)
    weighted = randomized(lambda: make(edits=edits, noisy_weight=1.0), std=0.1)
    for time in (0, 500, 999):
        draws = dataclasses.replace(plain.draw(jax.random.key(0), 1, row), time=jnp.array([time]))
        want = plain.noise_losses(links(1), row, draws)["noise"][0] / kept_share(ScheduleConfig())[time]
        np.testing.assert_allclose(weighted.noise_losses(links(1), row, draws)["noise"][0], want, rtol=1e-5)


def test_share_of_rows_that_lose_text_or_picture():
    rate = 0.05
    editor = randomized(lambda: make(edits=True, drop_rate=rate), std=0.1)
    draw = jnp.array([0.01, 0.07, 0.12, 0.16, 0.9])
    found = read_targets(targets(5, edits=True), edits=True)
    draws = dataclasses.replace(editor.draw(jax.random.key(0), 5, found), drop=draw)
    states, _ = editor.text_states(links(5))
    context = editor.context(states, draws)
    lost = [bool(jnp.allclose(row, editor.no_text()[0])) for row in context]
    assert lost == [True, True, False, False, False]
    source = editor.dropped_source(found, draws)
    assert [not bool(row.any()) for row in source] == [False, True, True, False, False]


@BOTH
def test_a_picture_depends_on_its_seed_and_link_alone(edits):
    asked = links(4)
    seed = jnp.array([5, 6, 5, 7])
    row = targets(4, edits=edits)
    request = Request(seed=seed, input=row.get("input"))
    key = jax.random.key(0)
    made = pictures(painter(edits), asked, request, key)
    assert made.shape == (4, 1, 16, 16, 3)
    assert made.dtype == jnp.uint8

    def take(tree, places):
        return jax.tree.map(lambda x: x[jnp.array(places)], tree)

    alone = pictures(painter(edits), take(asked, [2, 1]), take(request, [2, 1]), key)
    close(alone, made[jnp.array([2, 1])])
    other = pictures(painter(edits), take(asked, [0, 0]), take(request, [0, 1]), key)
    assert np.abs(np.asarray(other[0], int) - np.asarray(other[1], int)).max() > 2


@BOTH
def test_same_picture_on_one_and_on_eight_devices(edits):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    row = targets(8, edits=edits)
    asked, request = links(8), Request(seed=jnp.arange(8), input=row.get("input"))
    key = jax.random.key(0)
    one = pictures(painter(edits), asked, request, key)
    with jax.set_mesh(mesh):
        placed = jax.device_put((asked, request), split)
        whole = jax.device_put((painter(edits), key), jax.NamedSharding(mesh, jax.P()))
        eight = pictures(whole[0], *placed, whole[1])
    assert len(eight.sharding.device_set) == 8
    close(one, eight)


def close(a, b):
    """Equal but for the last bit of a colour, which rounding decides."""
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_weak_guidance_is_none():
    drawer = painter(False)
    states, _ = drawer.text_states(links(2))
    latents = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    plain = drawer.unet(latents, jnp.full(2, 17.0), states)

    def guided(weight):
        request = Request(seed=jnp.arange(2), guidance=jnp.asarray(weight))
        return drawer.guided(states, request)(latents, jnp.asarray(17.0))

    for weight in (0.0, 1.0):
        np.testing.assert_allclose(guided(weight), plain, atol=1e-4)
    nothing = drawer.unet(latents, jnp.full(2, 17.0), jnp.broadcast_to(drawer.no_text(), states.shape))
    np.testing.assert_allclose(guided(3.0), nothing + 3 * (plain - nothing), atol=1e-4)


@pytest.mark.parametrize("text, image", [(1.0, 1.5), (7.5, 0.9)])
def test_editing_has_both_guidances_or_none(text, image):
    editor = painter(True)
    states, _ = editor.text_states(links(2))
    latents, source = jax.random.normal(jax.random.key(0), (2, 2, 8, 8, 4))
    plain = editor.unet(jnp.concatenate([latents, source], -1), jnp.full(2, 17.0), states)
    request = Request(seed=jnp.arange(2), guidance=jnp.asarray(text), image_guidance=jnp.asarray(image))
    found = editor.guided(states, source, request)(latents, jnp.asarray(17.0))
    np.testing.assert_allclose(found, plain, atol=1e-4)


def test_a_request_may_bring_its_own_plan():
    drawer, asked = painter(False), links(1)
    default = pictures(drawer, asked, Request(seed=jnp.array([1])), jax.random.key(0))
    settings = dataclasses.replace(drawer.config.sampling, steps=1)
    plan = jax.tree.map(jnp.asarray, make_plan(settings, ScheduleConfig()))
    other = pictures(drawer, asked, Request(seed=jnp.array([1]), plan=plan), jax.random.key(0))
    assert np.abs(np.asarray(default, int) - np.asarray(other, int)).max() > 2


def test_the_autoencoder_has_a_stage_of_its_own():
    drawer = randomized(lambda: make(edits=False, objective="autoencoder"), std=0.1)

    def total(drawer):
        found = drawer.loss(links(2), targets(2, edits=False), key=jax.random.key(0))
        assert set(found) == {"autoencoder", "prior"}
        return sum(value for value, _ in found.values())

    found = jax.jit(jax.grad(total))(drawer)
    moved = {
        name: any(bool(x.any()) for x in jax.tree.leaves(getattr(found, name))) for name in ("vae", "unet")
    }
    assert moved == {"vae": True, "unet": False}


@BOTH
def test_the_autoencoder_beside_the_noise_predictor(edits):
    """It learns what it would learn alone; the noise loss does not reach it."""
    learner = randomized(lambda: make(edits=edits, objective="both"), std=0.1)

    def total(learner, objective, *names):
        learner.config = dataclasses.replace(learner.config, objective=objective)
        found = learner.loss(links(2), targets(2, edits=edits), key=jax.random.key(0))
        assert set(names) <= set(found)
        return sum(found[name][0] for name in names)

    grad = jax.jit(jax.grad(total), static_argnums=(1, 2, 3))
    joint = grad(learner, "both", "noise", "caption")
    assert not any(bool(x.any()) for x in jax.tree.leaves(joint.vae))
    assert any(bool(x.any()) for x in jax.tree.leaves(joint.unet))
    joint = grad(learner, "both", "autoencoder", "prior")
    alone = grad(learner, "autoencoder", "autoencoder", "prior")
    for a, b in zip(jax.tree.leaves(joint.vae), jax.tree.leaves(alone.vae), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@BOTH
def test_example_states_what_the_loss_reads(edits):
    sizes = config(edits=edits)
    example = painter(edits).example(3, sizes)
    found = jax.eval_shape(
        lambda targets: painter(edits).loss(links(3), targets, key=jax.random.key(0)), example
    )
    assert set(found) == {"noise", "caption"}


def test_what_raises():
    for missing in ("image", "caption"):
        found = targets(1, edits=False)
        del found[missing]
        with pytest.raises(ValueError, match=f"the targets lack {missing} or"):
            painter(False).loss(links(1), found, key=jax.random.key(0))
    with pytest.raises(ValueError, match="lack input or input_moments"):
        painter(True).loss(links(1), targets(1, edits=False), key=jax.random.key(0))
    with pytest.raises(ValueError, match="editing needs the picture"):
        painter(True).predict(links(1), Request(seed=jnp.zeros(1, int)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="steps=0"):
        config_of = dataclasses.replace(SamplingConfig(), steps=0)
        make(edits=False, sampling=config_of).predict(links(1), {}, key=jax.random.key(0))
    for wrong, message in (
        ({"size": 15}, "no multiple"),
        ({"objective": "v"}, "objective='v'"),
        ({"drop_rate": 0.4}, "drop_rate=0.4"),
        ({"draws": 0}, "draws=0"),
    ):
        with pytest.raises(ValueError, match=message):
            config(edits=False, **wrong)


def test_bytes_are_rounded():
    assert as_bytes(jnp.array([[[0.0, 0.5, 1.0]]])[None]).ravel().tolist() == [0, 128, 255]


def test_every_link_has_its_own_noise():
    keys = row_keys(jax.random.key(0), jnp.array([1, 2]), 2)
    assert len({bytes(jax.random.key_data(key)) for key in keys}) == 4
