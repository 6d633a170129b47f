# SPDX-License-Identifier: Apache-2.0
"""Samplers as tables of numbers, and the one loop that follows them.

DDIM, PNDM and Euler ancestral differ only in which times the noise predictor is asked at and in the
coefficients of an update that is linear in the latents, in the predicted noise, in earlier predictions and in
fresh noise. So a sampler is a `Plan`, made on the host, and one compiled program serves all of them with any
number of steps up to the plan's length.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from vllm2_jax.batch import Leaf
from vllm2_jax.decoders.diffusion.config import SamplingConfig, ScheduleConfig
from vllm2_jax.decoders.diffusion.schedule import kept_share

# (latents, time) -> noise
Predict = Callable[[Float[Array, "B h w L"], Float[Array, ""]], Float[Array, "B h w L"]]

HISTORY = 3  # earlier predictions that PNDM combines with the newest one


@struct.dataclass
class Plan:
    """What to do in each of N steps; steps after the last one that is `active` cost nothing.

    One row of it (axes *N gone) is what the loop gets to see in a step.

    Attributes:
      active: the step takes place.
      time: what the noise predictor is told.
      scale: of the latents on their way into the noise predictor.
      restart: the update starts from the kept latents instead of the newest.
      keep: the latents in front of this step are kept for a restart.
      push: the prediction joins the history.
      latents: coefficient of the latents.
      noise: coefficients of the prediction and of the history, newest first.
      fresh: coefficient of fresh normal noise.
      start: standard deviation of the first latents, the same in all rows.
    """

    active: Bool[Leaf, "*N"]
    time: Float[Leaf, "*N"]
    scale: Float[Leaf, "*N"]
    restart: Bool[Leaf, "*N"]
    keep: Bool[Leaf, "*N"]
    push: Bool[Leaf, "*N"]
    latents: Float[Leaf, "*N"]
    noise: Float[Leaf, "*N 4"]
    fresh: Float[Leaf, "*N"]
    start: Float[Leaf, "*N"]


@dataclasses.dataclass
class Step:
    """One row of a plan, see `Plan`."""

    time: float
    latents: float
    noise: tuple[float, ...]
    scale: float = 1.0
    fresh: float = 0.0
    restart: bool = False
    keep: bool = False
    push: bool = False


def leading(steps: int, schedule: ScheduleConfig) -> list[int]:
    """Whole times, `schedule.steps // steps` apart, the last one 1: "leading" spacing with offset 1.

    Raises:
      ValueError: so many steps that the first time would lie beyond the schedule.
    """
    if steps >= schedule.steps:
        raise ValueError(f"steps={steps}: this sampler takes at most {schedule.steps - 1}")
    return [i * (schedule.steps // steps) + 1 for i in reversed(range(steps))]


def ddim(steps: int, schedule: ScheduleConfig) -> tuple[float, list[Step]]:
    """DDIM without fresh noise: estimate the picture, then add the same noise as of the next time."""
    kept = kept_share(schedule).tolist()
    found = []
    for time in leading(steps, schedule):
        now, then = kept[time], kept[max(time - schedule.steps // steps, 0)]
        grow = math.sqrt(then / now)
        found.append(Step(float(time), grow, (math.sqrt(1 - then) - grow * math.sqrt(1 - now),)))
    return 1.0, found


def pndm(steps: int, schedule: ScheduleConfig) -> tuple[float, list[Step]]:
    """Pseudo linear multistep (PLMS), as Stable Diffusion's pipeline runs PNDM: `steps + 1` predictions.

    The second time is asked for twice: first to correct the step that led there, averaging both predictions
    and starting again from before it; that prediction does not join the history.
    """
    kept = kept_share(schedule).tolist()
    apart, times = schedule.steps // steps, leading(steps, schedule)
    combined = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def step(asked: int, time: int, mix: tuple[float, ...], **flags: bool) -> Step:
        """From `time` to the next one, the noise being predicted at `asked`."""
        now, then = kept[time], kept[max(time - apart, 0)]
        gain = (now - then) / (now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then))
        return Step(float(asked), math.sqrt(then / now), tuple(gain * part for part in mix), **flags)

    first, *others = times
    found = [step(first, first, (1.0,), keep=True, push=True)]
    if others:
        found.append(step(others[0], first, (0.5, 0.5), restart=True))
    for number, time in enumerate(others):
        found.append(step(time, time, combined[min(number + 1, HISTORY)], push=True))
    return 1.0, found


def euler_ancestral(
    steps: int, schedule: ScheduleConfig, *, spacing: str = "linspace"
) -> tuple[float, list[Step]]:
    """Euler steps in the scale of k-diffusion, each a little too far, and fresh noise to make up for it.

    `spacing` "linspace" (the default of InstructPix2Pix's pipeline) takes times between whole ones, "leading"
    whole ones.
    """
    kept = kept_share(schedule)
    table = np.sqrt((1 - kept) / kept).astype(np.float64)
    if spacing == "linspace":
        times = np.linspace(0, schedule.steps - 1, steps, dtype=np.float32)[::-1].tolist()
    else:
        times = [float(time) for time in leading(steps, schedule)]
    sigmas = [*np.interp(times, np.arange(schedule.steps), table).tolist(), 0.0]
    found = []
    for time, (now, then) in zip(times, itertools.pairwise(sigmas), strict=True):
        up = then * math.sqrt(now**2 - then**2) / now
        down = math.sqrt(then**2 - up**2)
        found.append(Step(time, 1.0, (down - now,), scale=1 / math.sqrt(now**2 + 1), fresh=up))
    return (sigmas[0] if spacing == "linspace" else math.sqrt(sigmas[0] ** 2 + 1)), found


# Name -> (steps, schedule) -> standard deviation of the first latents, and the steps.
SAMPLERS: dict[str, Callable[[int, ScheduleConfig], tuple[float, list[Step]]]] = {
    "ddim": ddim,
    "pndm": pndm,
    "euler_ancestral": euler_ancestral,
}


def make_plan(config: SamplingConfig, schedule: ScheduleConfig) -> Plan:
    """The plan of a sampler as numpy arrays, always `max_steps + 1` long (PNDM makes one more step).

    Raises:
      ValueError: an unknown sampler, no step at all, or more than `max_steps`.
    """
    if config.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {config.sampler!r}; choose one of {', '.join(SAMPLERS)}")
    if not 1 <= config.steps <= config.max_steps:
        raise ValueError(
            f"steps={config.steps}: a picture takes at least 1 step, and the program was made for at most "
            f"max_steps={config.max_steps}"
        )
    return lay_out(*SAMPLERS[config.sampler](config.steps, schedule), config.max_steps + 1)


def lay_out(start: float, steps: list[Step], length: int) -> Plan:
    """Steps as arrays, filled up to `length` with steps that do not take place."""

    def column(name: str, dtype: type) -> np.ndarray:
        values: np.ndarray = np.zeros(length, dtype)
        values[: len(steps)] = [getattr(step, name) for step in steps]
        return values

    noise = np.zeros((length, 1 + HISTORY), np.float32)
    for row, step in zip(noise, steps, strict=False):
        row[: len(step.noise)] = step.noise
    return Plan(
        active=np.arange(length) < len(steps),
        noise=noise,
        start=np.full(length, start, np.float32),
        **{name: column(name, np.float32) for name in ("time", "scale", "latents", "fresh")},
        **{name: column(name, bool) for name in ("restart", "keep", "push")},
    )


def sample(
    plan: Plan,
    predict: Predict,
    first: Float[Array, "B h w L"],
    fresh: Callable[[Array], Float[Array, "B h w L"]],
) -> tuple[Float[Array, "B h w L"], Float[Array, "N B h w L"]]:
    """Follows a plan.

    Args:
      plan: of the sampler.
      predict: (scaled latents, time) -> noise, guidance included.
      first: normal noise to start from.
      fresh: number of the step -> normal noise.

    Returns:
      The last latents, and those after every step (which a program that does not use them never stores).
    """
    start = first * plan.start[0]
    history = jnp.zeros((HISTORY, *first.shape), first.dtype)

    def step(carry, row: Plan, number: Array):
        latents, kept, history = carry
        noise = predict(latents * row.scale, row.time)
        kept = jnp.where(row.keep, latents, kept)
        # Sums, not a product: a TPU would multiply in bfloat16.
        earlier = sum(share * old for share, old in zip(row.noise[1:], history, strict=True))
        mixed = row.noise[0] * noise + earlier
        base = jnp.where(row.restart, kept, latents)
        latents = row.latents * base + mixed + row.fresh * fresh(number)
        pushed = jnp.concatenate([noise[None], history[:-1]])
        return latents, kept, jnp.where(row.push, pushed, history)

    def body(carry, xs):
        row, number = xs
        carry = jax.lax.cond(row.active, step, lambda carry, *_: carry, carry, row, number)
        return carry, carry[0]

    numbers = jnp.arange(plan.active.shape[0])
    (latents, _, _), path = jax.lax.scan(body, (start, start, history), (plan, numbers))
    return latents, path
