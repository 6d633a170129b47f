# SPDX-License-Identifier: Apache-2.0
"""Samplers on data that is known: one picture, whose noise can be told exactly at every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.decoders.diffusion.config import SamplingConfig, ScheduleConfig
from vllm2_jax.decoders.diffusion.samplers import SAMPLERS, make_plan, sample
from vllm2_jax.decoders.diffusion.schedule import add_noise, kept_share, noise_of, share_at, velocity

SCHEDULE = ScheduleConfig()
PICTURE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32))


def plan(sampler, steps, room=30):
    return make_plan(SamplingConfig(sampler=sampler, steps=steps, max_steps=room), SCHEDULE)


def exact(latents, time):
    """The noise in latents of `PICTURE`; between two whole times by interpolated sigmas."""
    kept = kept_share(SCHEDULE)
    sigma = jnp.interp(time, jnp.arange(len(kept)), jnp.asarray(np.sqrt((1 - kept) / kept)))
    root = 1 / jnp.sqrt(1 + sigma**2)
    return (latents - root * PICTURE) / (root * sigma)


@jax.jit
def run(plan, key):
    def fresh(number):
        return jax.random.normal(jax.random.fold_in(key, number), PICTURE.shape)

    return sample(plan, exact, fresh(1000), fresh)


# A single step of DDIM or PNDM is asked at time 1, where nothing of the picture can be learnt.
CASES = [(name, steps) for name in SAMPLERS for steps in (1, 2, 3, 17, 30)]


@pytest.mark.parametrize("sampler, steps", [case for case in CASES if case[1] > 1 or "euler" in case[0]])
def test_every_sampler_finds_the_only_picture(sampler, steps):
    found, _ = run(plan(sampler, steps), jax.random.key(3))
    # DDIM and PNDM stop at the first time, where 3 % of the standard deviation is noise.
    left = 0.0 if sampler == "euler_ancestral" else np.sqrt(1 - kept_share(SCHEDULE)[0])
    np.testing.assert_allclose(found, PICTURE, atol=1e-4 + 5 * left)


def test_one_program_serves_all_samplers_and_step_counts():
    run.clear_cache()
    for sampler in SAMPLERS:
        for steps in (1, 7, 30):
            run(plan(sampler, steps), jax.random.key(0))
    assert run._cache_size() == 1


def test_room_for_more_steps_changes_nothing_and_costs_no_prediction():
    calls = []

    def predict(latents, time):
        jax.debug.callback(lambda time: calls.append(float(time)), time)
        return exact(latents, time)

    def go(plan):
        calls.clear()
        found, path = sample(plan, predict, PICTURE, lambda number: PICTURE * number)
        jax.effects_barrier()
        assert path.shape[0] == plan.active.shape[0]
        return found, list(calls)

    for sampler, predictions in (("ddim", 4), ("pndm", 5), ("euler_ancestral", 4)):
        tight, asked = go(plan(sampler, 4, room=4))
        roomy, again = go(plan(sampler, 4, room=20))
        np.testing.assert_array_equal(tight, roomy)
        assert asked == again
        assert len(asked) == predictions


@pytest.mark.parametrize(
    "sampler, steps, message",
    [
        ("ddim", 0, "steps=0: a picture takes at least 1 step"),
        ("pndm", -1, "steps=-1: a picture"),
        ("ddim", 31, "at most max_steps=30"),
        ("dpm", 5, "unknown sampler 'dpm'; choose one of ddim, pndm, euler_ancestral"),
    ],
)
def test_what_raises(sampler, steps, message):
    with pytest.raises(ValueError, match=message):
        plan(sampler, steps)


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_leading_times_do_not_leave_the_schedule(sampler):
    assert plan(sampler, 999, room=999).time[0] == 999
    with pytest.raises(ValueError, match="steps=1000: this sampler takes at most 999"):
        plan(sampler, 1000, room=1000)
    with pytest.raises(ValueError, match="steps=100: this sampler takes at most 49"):
        make_plan(SamplingConfig(sampler=sampler, steps=100, max_steps=100), ScheduleConfig(steps=50))


def test_noise_is_known_from_velocity():
    time, noise = jnp.array([0, 999]), jax.random.normal(jax.random.key(0), PICTURE.shape)
    noisy = add_noise(PICTURE, noise, time, SCHEDULE)
    found = noise_of(velocity(PICTURE, noise, time, SCHEDULE), noisy, time, SCHEDULE)
    np.testing.assert_allclose(found, noise, atol=1e-4)


def test_share_between_two_steps_is_what_euler_ancestral_scales_by():
    table = plan("euler_ancestral", 20)
    np.testing.assert_allclose(
        jnp.sqrt(share_at(jnp.asarray(table.time[:20]), SCHEDULE)), table.scale[:20], rtol=1e-4
    )
    np.testing.assert_allclose(share_at(jnp.arange(1000), SCHEDULE), kept_share(SCHEDULE), rtol=1e-4)


def test_noise_is_float32_from_the_first_step_on():
    latents = jnp.zeros((3, 2, 2, 1))
    noise = jnp.ones((3, 2, 2, 1))
    noisy = add_noise(latents, noise, jnp.array([0, 1, 999]), SCHEDULE)
    assert noisy.dtype == jnp.float32
    # In bfloat16 the first two of these would be 0.
    want = np.sqrt(1 - np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))[[0, 1, 999]]
    np.testing.assert_allclose(noisy[:, 0, 0, 0], want, rtol=1e-4)
