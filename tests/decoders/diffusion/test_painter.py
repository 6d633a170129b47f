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
from vllm2_jax.decoders.diffusion.vae import draw_latents
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.mesh import make_mesh
from vllm2_jax.sharding.partition import batch_sharding
from vllm2_jax.sharding.program import parse
from vllm2_jax.sharding.strategies import STRATEGIES

# Four rows of losses and eight of pictures everywhere, so that each program is compiled once.
BOTH = pytest.mark.parametrize("edits", [False, True], ids=["generation", "editing"])


@jax.jit
def losses(painter, links, targets):
    return painter.loss(links, targets, key=jax.random.key(1))


@jax.jit
def pictures(painter, links, request, key):
    return painter.predict(links, request, key=key)


@BOTH
def test_terms_count_links_and_captions(edits):
    found = losses(painter(edits), links(4), targets(4, edits=edits))
    assert isinstance(painter(edits), Decoder)
    assert set(found) == {"noise", "caption"}
    assert [float(weight) for _, weight in found.values()] == [4, 4]
    fewer = targets(4, edits=edits) | {"has_caption": jnp.array([True, False, True, False])}
    asked = dataclasses.replace(links(4), valid=jnp.array([[True], [True], [False], [True]]))
    found = losses(painter(edits), asked, fewer)
    assert float(found["noise"][1]) == 3
    assert float(found["caption"][1]) == 1
    none = dataclasses.replace(links(4), valid=jnp.zeros((4, 1), bool))
    assert all(float(x) == 0 for pair in losses(painter(edits), none, fewer).values() for x in pair)


@BOTH
def test_given_moments_and_text_states_replace_pictures_and_captions(edits):
    found = targets(4, edits=edits)
    want = losses(painter(edits), links(4), found)

    @jax.jit
    def encode(painter):
        ready = {
            "moments": painter.moments(found["image"], None),
            "caption_states": painter.text(found["caption"]),
            "has_caption": found["has_caption"],
        }
        if edits:
            ready["input_moments"] = painter.moments(found["input"], None)
        return ready

    got = losses(painter(edits), links(4), encode(painter(edits)))
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
    row = targets(2, edits=edits)
    twice = {name: jnp.repeat(x, 2, axis=0) for name, x in row.items()}
    flat = links(4)
    both = Links(flat.states.reshape(2, 2, *flat.states.shape[2:]), jnp.ones((2, 2), bool))
    one, other = losses(painter(edits), both, row), losses(painter(edits), flat, twice)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@BOTH
def test_several_noisy_versions_of_a_picture(edits):
    """They are worth as many rows with the same link and picture, and the caption counts once."""
    several = randomized(lambda: make(edits=edits, draws=2), std=0.1)
    row, asked = targets(2, edits=edits), links(2)
    repeated = {name: jnp.repeat(x, 2, axis=0) for name, x in row.items()}
    flat = Links(jnp.repeat(asked.states, 2, axis=0), jnp.ones((4, 1), bool))
    one, other = losses(several, asked, row), losses(painter(edits), flat, repeated)
    assert [float(one[name][1]) for name in ("noise", "caption")] == [4, 2]
    np.testing.assert_allclose(one["noise"][0], other["noise"][0], rtol=1e-5)
    np.testing.assert_allclose(one["caption"][0] * 2, other["caption"][0], rtol=1e-5)


# Both decoders measure in the same lines of `Painter.losses`.
@pytest.mark.parametrize("edits", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_velocity_instead_of_noise(edits):
    """The loss is that of the noise which samplers get to see, divided by A_t."""
    row = read_targets(targets(1, edits=edits), edits=edits)
    changes = {"predicts": "velocity", "noise_weight": 0.5, "drop_rate": 0.0}
    swift = randomized(lambda: make(edits=edits, **changes), std=0.1)

    @jax.jit
    def measure(painter, time):
        draws = dataclasses.replace(painter.draw(jax.random.key(0), 1, row), time=time[None])
        x, (states, _) = painter.noisy(painter.latents(row, draws), draws), painter.text_states(links(1))
        x = jnp.concatenate([x, painter.dropped_source(row, draws)], axis=-1) if edits else x
        error = jnp.square(painter.predict_noise(x, draws.time, states) - draws.noise).mean()
        return painter.noise_losses(links(1), row, draws)["noise"][0], error

    for time in (0, 500, 999):
        loss, error = measure(swift, jnp.asarray(time))
        np.testing.assert_allclose(loss, 0.5 * error / kept_share(ScheduleConfig())[time], rtol=2e-3)


def test_every_time_is_drawn():
    """From the first to the last, as often; what is drawn beside it is something else."""
    steps, latent = ScheduleConfig().steps, config(edits=False).vae.latent
    row = {"moments": jnp.zeros((1, 1, 1, 2 * latent)), "caption": targets(1, edits=False)["caption"]}
    draw = jax.jit(painter(False).draw, static_argnums=1)
    first, same, other = (draw(jax.random.key(i), 20_000, read_targets(row, edits=False)) for i in (0, 0, 1))
    assert np.bincount(first.time, minlength=steps).min() > 0 and first.time.max() == steps - 1
    np.testing.assert_allclose(first.time.mean(), (steps - 1) / 2, rtol=0.02)
    assert first.drop.min() >= 0 and first.drop.max() < 1
    np.testing.assert_allclose(first.drop.mean(), 0.5, rtol=0.02)
    for a, b in ((first.posterior, first.noise), (first.drop, first.time)):
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.03
    for a, b, c in zip(*map(jax.tree.leaves, (first, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a == c).mean() < 0.01


def test_the_prior_is_the_divergence_of_scaled_latents_from_normal_ones():
    """Measured by drawing: the mean of log q(z) - log p(z), per latent."""
    drawer, row = painter(False), read_targets(targets(1, edits=False), edits=False)
    weight, scale = drawer.config.kl_weight, drawer.config.vae.scale

    @jax.jit
    def measure(drawer, noise):
        found = drawer.autoencoder_losses(jax.random.key(0), row.image, jnp.ones(1, bool))
        moments = drawer.moments(row.image, None)
        z = jax.vmap(lambda noise: draw_latents(moments, noise) * scale)(noise)
        spread = scale * jnp.exp(0.5 * jnp.split(moments, 2, axis=-1)[1])
        density = -0.5 * jnp.square(noise) - jnp.log(spread) + 0.5 * jnp.square(z)
        return (
            found["prior"][0] / weight,
            density.mean(),
            drawer.finish(z[0]),
            drawer.vae.decode(z[0] / scale),
        )

    latents = 16 // drawer.config.vae.factor
    noise = jax.random.normal(jax.random.key(1), (4000, 1, latents, latents, drawer.config.vae.latent))
    divergence, drawn, picture, decoded = measure(drawer, noise)
    np.testing.assert_allclose(divergence, drawn, rtol=0.01)
    np.testing.assert_allclose(picture, np.clip(np.asarray(decoded) / 2 + 0.5, 0, 1), atol=1e-6)


def test_share_of_rows_that_lose_text_or_picture():
    rate = 0.05
    editor = randomized(lambda: make(edits=True, drop_rate=rate), std=0.1)
    draw = jnp.array([0.01, 0.07, 0.12, 0.16, 0.9])
    found = read_targets(targets(5, edits=True), edits=True)

    @jax.jit
    def read(editor):
        draws = dataclasses.replace(editor.draw(jax.random.key(0), 5, found), drop=draw)
        states, _ = editor.text_states(links(5))
        return editor.context(states, draws), editor.dropped_source(found, draws), editor.no_text()[0]

    context, source, no_text = read(editor)
    lost = [bool(jnp.allclose(row, no_text)) for row in context]
    assert lost == [True, True, False, False, False]
    assert [not bool(row.any()) for row in source] == [False, True, True, False, False]


def request(edits):
    """Eight pictures; the third has the seed of the first."""
    return Request(seed=jnp.array([5, 6, 5, 7, 0, 1, 2, 3]), input=targets(8, edits=edits).get("input"))


@BOTH
def test_a_picture_depends_on_its_seed_and_link_alone(edits):
    asked, wanted, key = links(8), request(edits), jax.random.key(0)
    made = pictures(painter(edits), asked, wanted, key)
    assert made.shape == (8, 1, 16, 16, 3)
    assert made.dtype == jnp.uint8

    def take(tree, places):
        return jax.tree.map(lambda x: x[jnp.array(places)], tree)

    places = [2, 1, 1, 2, 5, 2, 1, 6]
    others = pictures(painter(edits), take(asked, places), take(wanted, places), key)
    close(others, made[jnp.array(places)])
    first = [0] * 8
    seeds = dataclasses.replace(take(wanted, first), seed=wanted.seed)
    drawn = np.asarray(pictures(painter(edits), take(asked, first), seeds, key), int)
    assert np.abs(drawn[0] - drawn[1]).max() > 2
    close(drawn[0], drawn[2])


@BOTH
def test_devices_paint_the_same_without_talking_to_each_other(edits):
    """Guidance doubles or triples the rows of the UNet, each where it is."""
    strategy = STRATEGIES["dp"]
    mesh = make_mesh(strategy)
    asked, wanted, key = links(8), request(edits), jax.random.key(0)
    one = pictures(painter(edits), asked, wanted, key)
    with jax.set_mesh(mesh), axis_rules(strategy.activation_rules):
        placed = jax.device_put((asked, wanted), batch_sharding(mesh, strategy.rules))
        drawer, seed = jax.device_put((painter(edits), key), jax.NamedSharding(mesh, jax.P()))
        # A function of its own: the rules of axes are read while it is traced.
        program = jax.jit(lambda *x: pictures.__wrapped__(*x)).lower(drawer, *placed, seed).compile()
        eight = program(drawer, *placed, seed)
    assert collectives(parse(program.as_text()), dict(mesh.shape)) == []
    assert len(eight.sharding.device_set) == 8
    close(one, eight)


def close(a, b):
    """Equal but for the last bit of a colour, which rounding decides."""
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_weak_guidance_is_none():
    @jax.jit
    def predict(drawer, latents, weight):
        states, _ = drawer.text_states(links(2))
        nothing = jnp.broadcast_to(drawer.no_text(), states.shape)
        rows = jnp.concatenate([latents, latents]), jnp.full(4, 17.0), jnp.concatenate([states, nothing])
        asked = Request(seed=jnp.arange(2), guidance=weight)
        return drawer.guided(states, asked)(latents, jnp.asarray(17.0)), *jnp.split(drawer.unet(*rows), 2)

    latents = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    for weight in (0.0, 1.0):
        found, plain, _ = predict(painter(False), latents, jnp.asarray(weight))
        np.testing.assert_allclose(found, plain, atol=1e-4)
    found, plain, nothing = predict(painter(False), latents, jnp.asarray(3.0))
    np.testing.assert_allclose(found, nothing + 3 * (plain - nothing), atol=1e-4)


def test_editing_has_both_guidances_or_none():
    @jax.jit
    def predict(editor, text, image):
        states, _ = editor.text_states(links(2))
        latents, source = jax.random.normal(jax.random.key(0), (2, 2, 8, 8, 4))
        plain = editor.unet(jnp.concatenate([latents, source], -1), jnp.full(2, 17.0), states)
        asked = Request(seed=jnp.arange(2), guidance=text, image_guidance=image)
        return editor.guided(states, source, asked)(latents, jnp.asarray(17.0)), plain

    for text, image in ((1.0, 1.5), (7.5, 0.9)):
        found, plain = predict(painter(True), jnp.asarray(text), jnp.asarray(image))
        np.testing.assert_allclose(found, plain, atol=1e-4)
    found, plain = predict(painter(True), jnp.asarray(7.5), jnp.asarray(1.5))
    assert np.abs(found - plain).max() > 1e-3


def test_a_request_may_bring_its_own_plan():
    drawer, asked, wanted = painter(False), links(8), request(False)
    default = pictures(drawer, asked, wanted, jax.random.key(0))
    settings = dataclasses.replace(drawer.config.sampling, steps=1)
    plan = jax.tree.map(jnp.asarray, make_plan(settings, ScheduleConfig()))
    other = pictures(drawer, asked, dataclasses.replace(wanted, plan=plan), jax.random.key(0))
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


# Editing does what generation does, and has a second picture through which a gradient could flow.
@pytest.mark.parametrize("edits", [pytest.param(False, marks=pytest.mark.slow), True])
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
    encoded = {"moments": jnp.zeros((1, 8, 8, 8)), "caption": targets(1, edits=False)["caption"]}
    with pytest.raises(ValueError, match="objective='both' trains the autoencoder, which needs pictures"):
        jax.eval_shape(
            lambda: make(edits=False, objective="both").loss(links(1), encoded, key=jax.random.key(0))
        )
    with pytest.raises(ValueError, match="editing needs the picture"):
        painter(True).predict(links(1), Request(seed=jnp.zeros(1, int)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="steps=0"):
        config_of = dataclasses.replace(SamplingConfig(), steps=0)
        lazy = randomized(lambda: make(edits=False, sampling=config_of))
        lazy.predict(links(1), {}, key=jax.random.key(0))
    for wrong, message in (
        ({"size": 15}, "no multiple"),
        ({"objective": "v"}, "objective='v'"),
        ({"drop_rate": 0.4}, "drop_rate=0.4"),
        ({"draws": 0}, "draws=0"),
        ({"predicts": "v"}, "predicts='v'"),
    ):
        with pytest.raises(ValueError, match=message):
            config(edits=False, **wrong)


def test_bytes_are_rounded():
    assert as_bytes(jnp.array([[[0.0, 0.5, 1.0]]])[None]).ravel().tolist() == [0, 128, 255]


def test_every_link_has_its_own_noise():
    keys = row_keys(jax.random.key(0), jnp.array([1, 2]), 2)
    assert len({bytes(jax.random.key_data(key)) for key in keys}) == 4
