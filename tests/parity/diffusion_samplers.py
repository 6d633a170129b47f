# SPDX-License-Identifier: Apache-2.0
"""Samplers alone: latents after every step for the noise that the official UNet predicted."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.diffusion import nchw, nhwc
from tests.parity.diffusion_sampling import plan_of
from vllm2_jax.decoders.diffusion.config import ScheduleConfig
from vllm2_jax.decoders.diffusion.samplers import sample

NAMES = ("ddim", "pndm", "eulera_sd_leading", "ip2p_eulera")


def cases(folder: pathlib.Path) -> Iterator[Case]:
    for name in NAMES:
        if (folder / f"sample_{name}.npz").exists():
            yield from latents(name, goldens.arrays(folder, f"sample_{name}"))


def latents(name: str, data: dict[str, np.ndarray]) -> Iterator[Case]:
    """One recorded trajectory. The steps' times are replaced by their numbers, to look predictions up."""
    plan = plan_of(name, data, ScheduleConfig())
    plan = dataclasses.replace(plan, time=np.arange(len(plan.time), dtype=np.float32))
    first = nhwc(data["latents_init"])
    predicted = jnp.asarray(np.moveaxis(data["unet_out_steps"], 2, -1))
    guidance = float(data["guidance_scale"])
    noise = np.moveaxis(data["noise"], 2, -1) if "noise" in data else np.zeros((1, *first.shape))
    noise = jnp.asarray(noise.astype(np.float32))

    def predict(latents, number):
        parts = jnp.split(predicted[number.astype(int)], len(predicted[0]) // len(latents))
        if len(parts) == 2:  # without text, with text
            return parts[0] + guidance * (parts[1] - parts[0])
        both, picture, neither = parts
        by_picture = float(data["image_guidance_scale"]) * (picture - neither)
        return neither + guidance * (both - picture) + by_picture

    _, path = sample(plan, predict, first, lambda number: noise[number])
    for i, want in enumerate(data["latents_steps"]):
        yield f"{name} latents after step {i}", nchw(path[i]), want
