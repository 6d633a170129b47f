# SPDX-License-Identifier: Apache-2.0
"""How much of a picture is left at each time step. Always float32.

The official code casts the table to the latents' dtype before its square roots: in bfloat16 the first two
steps add no noise at all and early ones are up to 14 % off.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vllm2_jax.decoders.diffusion.config import ScheduleConfig


@functools.cache
def kept_share(config: ScheduleConfig) -> np.ndarray:
    """A_t, [steps]: the share of the latents' variance that time step t leaves, about 1 down to about 0."""
    roots = np.linspace(config.first**0.5, config.last**0.5, config.steps, dtype=np.float32)
    return np.cumprod(1 - roots**2)


def share_at(time: Float[Array, "*B"] | Int[Array, "*B"], config: ScheduleConfig) -> Float[Array, "*B"]:
    """A_t, also between two time steps, where noise over signal is interpolated as Euler ancestral does."""
    kept = kept_share(config)
    ratio = jnp.interp(time, jnp.arange(config.steps), jnp.asarray(np.sqrt((1 - kept) / kept)))
    return 1 / (1 + jnp.square(ratio))


def velocity(
    latents: Float[Array, "B h w L"],
    noise: Float[Array, "B h w L"],
    time: Int[Array, " B"],
    config: ScheduleConfig,
) -> Float[Array, "B h w L"]:
    """sqrt(A_t) noise - sqrt(1 - A_t) latents: what to predict instead of the noise."""
    of_latents, of_noise = _shares(time, config)
    return of_latents * noise - of_noise * latents


def noise_of(
    velocity: Float[Array, "B h w L"],
    noisy: Float[Array, "B h w L"],
    time: Float[Array, " B"] | Int[Array, " B"],
    config: ScheduleConfig,
) -> Float[Array, "B h w L"]:
    """The noise in noisy latents whose velocity is known."""
    kept = share_at(time, config)[:, None, None, None]
    return jnp.sqrt(kept) * velocity + jnp.sqrt(1 - kept) * noisy


def add_noise(
    latents: Float[Array, "B h w L"],
    noise: Float[Array, "B h w L"],
    time: Int[Array, " B"],
    config: ScheduleConfig,
) -> Float[Array, "B h w L"]:
    """Latents as they are at each row's time step."""
    of_latents, of_noise = _shares(time, config)
    return of_latents * latents + of_noise * noise


def _shares(
    time: Int[Array, " B"], config: ScheduleConfig
) -> tuple[Float[Array, "B 1 1 1"], Float[Array, "B 1 1 1"]]:
    """What noisy latents hold of the latents and of the noise: sqrt(A_t), sqrt(1 - A_t)."""
    kept = jnp.asarray(kept_share(config))[time][:, None, None, None]
    return jnp.sqrt(kept), jnp.sqrt(1 - kept)
