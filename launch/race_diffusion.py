# SPDX-License-Identifier: Apache-2.0
"""The race of the decoders that paint: Stable Diffusion 1.5's UNet against diffusers in PyTorch.

Both sides have the same weights, the same inputs and float32; what they return is compared before anything is
timed. One picture each:

    forward    noise of one picture
    frozen     loss and its gradient for the text states: what generation trains through a frozen UNet
    train      loss and its gradient for all weights and the text states: what editing trains. Without an
               optimizer, whose state would be 7 GB a side
    sample     20 steps of DDIM with guidance: 40 passes
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.race import filled, need, race, show
from vllm2_jax.decoders.diffusion.config import SamplingConfig, ScheduleConfig, UNetConfig
from vllm2_jax.decoders.diffusion.painter import apart, side_by_side
from vllm2_jax.decoders.diffusion.samplers import make_plan, sample
from vllm2_jax.decoders.diffusion.unet import UNet
from vllm2_jax.nn.rngs import Rngs

PIXELS, FACTOR = 256, 8
STEPS, GUIDANCE, TOKENS = 20, 7.5, 77
PARTS = ("forward", "frozen", "train", "sample")


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides get.

    Attributes:
      latents: noisy ones, [1, S, S, C]; the noise to predict is taken to be the same, whatever that is worth.
      time: step of the schedule.
      text, no_text: text states of the caption and of an empty one, [1, 77, W].
    """

    latents: np.ndarray
    time: int
    text: np.ndarray
    no_text: np.ndarray


def diffusion(args: argparse.Namespace) -> dict[str, Any]:
    """Forward pass, both kinds of gradient and sampling with the UNet of Stable Diffusion 1.5."""
    need("torch")
    from launch.peers import torch_diffusion
    from vllm2_jax.convert.diffusion import unet_table
    from vllm2_jax.convert.rules import export

    pixels, config = args.pixels or PIXELS, UNetConfig()
    work = make_work(config, pixels)
    ours = Ours(config, work)
    peer = torch_diffusion.Peer(config, work, STEPS, GUIDANCE, export(ours.unet, unet_table(config)))
    found = {}
    for part in PARTS:
        sides = {"ours": getattr(ours, part), "peer": getattr(peer, part)}
        same(part, sides["ours"](), sides["peer"]())
        title, units = f"{part}, {pixels} pixels", STEPS if part == "sample" else 1
        found[title] = race(sides, args.rounds)
        show(title, found[title], units, "steps" if part == "sample" else "passes")
    return found


def make_work(config: UNetConfig, pixels: int) -> Work:
    """Random inputs for one picture."""
    side, rng = pixels // FACTOR, np.random.default_rng(0)
    # Every level but the first halves the side; diffusers could not put odd ones together again.
    least = FACTOR * 2 ** (len(config.widths) - 1)
    if pixels < least or pixels % least:
        raise SystemExit(f"--pixels {pixels}: has to be a multiple of {least} for this UNet")
    latents = rng.normal(size=(1, side, side, config.channels))
    text, no_text = rng.normal(size=(2, 1, TOKENS, config.context))
    return Work(latents.astype(np.float32), 501, text.astype(np.float32), no_text.astype(np.float32))


def same(part: str, ours: Any, theirs: Any) -> None:
    """Raises AssertionError if the sides do not return the same; latents channels last and first."""
    found, wanted = np.asarray(ours), np.asarray(theirs)
    wanted = wanted.transpose(0, 2, 3, 1) if wanted.ndim == 4 else wanted
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3 * np.abs(wanted).max(), err_msg=part)


class Ours:
    """Our UNet, jitted; weights and inputs are on the device."""

    def __init__(self, config: UNetConfig, work: Work):
        self.unet = filled(lambda: UNet(config, dtype=jnp.float32, rngs=Rngs(0)))
        self.latents, self.text, self.no_text = map(jnp.asarray, (work.latents, work.text, work.no_text))
        self.time = jnp.array([work.time])
        plan = make_plan(SamplingConfig(sampler="ddim", steps=STEPS, max_steps=STEPS), ScheduleConfig())
        self.plan = jax.tree.map(jnp.asarray, plan)
        self._forward = jax.jit(lambda unet, x, time, text: unet(x, time, text))
        self._frozen = jax.jit(jax.grad(_loss))
        self._train = jax.jit(jax.grad(_loss, argnums=(0, 1)))
        self._sample = jax.jit(_sample)

    def forward(self) -> jax.Array:
        """Noise of one picture."""
        return self._forward(self.unet, self.latents, self.time, self.text).block_until_ready()

    def frozen(self) -> jax.Array:
        """Gradient of the text states."""
        return self._frozen(self.text, self.unet, self.latents, self.time).block_until_ready()

    def train(self) -> jax.Array:
        """All gradients; returns that of the text states."""
        text, _ = jax.block_until_ready(self._train(self.text, self.unet, self.latents, self.time))
        return text

    def sample(self) -> jax.Array:
        """Latents of a picture."""
        found = self._sample(self.unet, self.plan, self.latents, self.text, self.no_text)
        return found.block_until_ready()


def _loss(text: jax.Array, unet: UNet, latents: jax.Array, time: jax.Array) -> jax.Array:
    return jnp.square(unet(latents, time, text) - latents).mean()


def _sample(unet: UNet, plan: Any, latents: jax.Array, text: jax.Array, no_text: jax.Array) -> jax.Array:
    context = side_by_side(no_text, text)

    def predict(x: jax.Array, time: jax.Array) -> jax.Array:
        without, with_text = apart(unet(side_by_side(x, x), jnp.full(2, time), context), 2)
        return without + GUIDANCE * (with_text - without)

    return sample(plan, predict, latents, lambda number: jnp.zeros_like(latents))[0]
