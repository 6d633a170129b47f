# SPDX-License-Identifier: Apache-2.0
"""Noise schedule, tables of the samplers, and whole trajectories from link states to pictures."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.diffusion import build, links, nchw, nhwc, whole
from vllm2_jax.decoders.diffusion import samplers
from vllm2_jax.decoders.diffusion.config import SamplingConfig, ScheduleConfig
from vllm2_jax.decoders.diffusion.painter import Painter
from vllm2_jax.decoders.diffusion.samplers import Plan, make_plan, sample
from vllm2_jax.decoders.diffusion.schedule import add_noise, kept_share
from vllm2_jax.decoders.diffusion.targets import Request

STEPS = (10, 20, 50, 100)
# Room for more steps than any trajectory has: what is left over must not matter.
ROOM = 120


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "scheduler")
    painters = {edits: build(folder, edits=edits) for edits in (False, True)}
    schedule = painters[False].config.schedule
    yield from schedule_cases(data, schedule)
    with jax.default_matmul_precision("highest"):
        yield "no text", np.asarray(jax.jit(Painter.no_text)(painters[False])), data["null_caption"]
        if not whole(folder):
            return
        for name in ("ddim", "pndm", "eulera_sd_leading", "ip2p_eulera"):
            edits = name.startswith("ip2p")
            found = goldens.arrays(folder, f"sample_{name}")
            plan = plan_of(name, found, schedule)
            for case, got, want in trajectory(folder, painters[edits], found, plan, edits=edits):
                yield f"{name}: {case}", got, want


def schedule_cases(data: dict[str, np.ndarray], schedule: ScheduleConfig) -> Iterator[Case]:
    """Shares of variance, noisy latents, times and sigmas."""
    yield "share of variance kept", kept_share(schedule), data["alphas_cumprod"]
    noisy = add_noise(
        nhwc(data["addnoise_x0"]), nhwc(data["addnoise_noise"]), jnp.asarray(data["addnoise_t"]), schedule
    )
    yield "noisy latents", nchw(noisy), data["addnoise_out"]
    for count in STEPS:
        for name, recorded in (("ddim", "ddim"), ("pndm", "pndm"), ("euler_ancestral", "eulera")):
            plan = make_plan(SamplingConfig(sampler=name, steps=count, max_steps=ROOM), schedule)
            yield f"{name} times of {count} steps", plan.time[plan.active], data[f"{recorded}_t{count}"] * 1.0
        # sigma / sqrt(sigma^2 + 1) is the root of what is not kept.
        sigmas = np.sqrt(1 / plan.scale[plan.active].astype(np.float64) ** 2 - 1)
        want = data[f"eulera_sigmas{count}"][:-1]
        # Relative: they go from 0.03 to 14.6.
        yield f"sigmas of {count} steps", (sigmas / want).astype(np.float32), np.ones_like(want)


def plan_of(name: str, data: dict[str, np.ndarray], schedule: ScheduleConfig) -> Plan:
    """The plan of a recorded trajectory."""
    calls = len(data["timesteps"])
    if name == "eulera_sd_leading":
        return samplers.lay_out(*samplers.euler_ancestral(calls, schedule, spacing="leading"), ROOM)
    sampler = "euler_ancestral" if name == "ip2p_eulera" else name
    steps = calls - (sampler == "pndm")
    return make_plan(SamplingConfig(sampler=sampler, steps=steps, max_steps=ROOM), schedule)


def trajectory(
    folder: pathlib.Path, painter: Painter, data: dict[str, np.ndarray], plan: Plan, *, edits: bool
) -> Iterator[Case]:
    """Text states, latents after every step, and the picture, for the recorded noise."""
    length = len(plan.active)
    noise = np.zeros((length, *nhwc(data["latents_init"]).shape), np.float32)
    if "noise" in data:
        noise[: len(data["noise"])] = np.moveaxis(data["noise"], 2, -1)
    request = Request(
        seed=jnp.arange(len(data["input_ids"])),
        input=nhwc(data["image01"]) * 2 - 1 if edits else None,
        guidance=jnp.asarray(data["guidance_scale"]),
        image_guidance=jnp.asarray(data["image_guidance_scale"]) if edits else None,
    )

    @jax.jit
    def run(painter, plan, hidden, noise, first, request):
        states, _ = painter.text_states(links(folder, data, hidden, edits=edits))
        if edits:
            predict = painter.guided(states, painter.source(painter.moments(request.input, None)), request)
        else:
            predict = painter.guided(states, request)
        latents, path = sample(plan, predict, first, lambda number: noise[number])
        return states, path, painter.finish(latents)

    hidden, first = jnp.asarray(data["hidden_states"]), nhwc(data["latents_init"])
    states, path, pictures = run(painter, plan, hidden, jnp.asarray(noise), first, request)
    yield "text states", np.asarray(states), data["prompt_embeds"]
    yield "first standard deviation", plan.start[:1], data.get("init_noise_sigma", np.float32(1))[None]
    for i, want in enumerate(data["latents_steps"]):
        yield f"latents after step {i}", nchw(path[i]), want
    yield "last latents", nchw(path[-1]), data["latents_final"]
    yield "picture", np.asarray(pictures), data["image_final01"]
