# SPDX-License-Identifier: Apache-2.0
"""Decoders that paint pictures of 16 pixels, small enough to compile in seconds."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.weights import randomized
from vllm2_jax.batch import Links
from vllm2_jax.decoders.diffusion.config import (
    MapperConfig,
    PainterConfig,
    SamplingConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from vllm2_jax.decoders.diffusion.instruct_pix2pix import InstructPix2Pix
from vllm2_jax.decoders.diffusion.painter import Painter
from vllm2_jax.decoders.diffusion.stable_diffusion import StableDiffusion
from vllm2_jax.nn.rngs import Rngs

LINK_WIDTH, QUERIES = 24, 5
PAINTERS = {False: StableDiffusion, True: InstructPix2Pix}


def config(*, edits: bool, **changes: Any) -> PainterConfig:
    """Two levels everywhere; every size differs from every other where it can."""
    return dataclasses.replace(
        PainterConfig(
            unet=UNetConfig(
                channels=8 if edits else 4,
                widths=(16, 32),
                attends=(True, False),
                depth=1,
                heads=2,
                context=16,
                groups=4,
            ),
            vae=VAEConfig(widths=(8, 16), depth=1, groups=4),
            text=TextConfig(vocab=40, width=16, depth=1, heads=4, mlp=32, length=6, start=1, end=2),
            mapper=MapperConfig(heads=8, mlp=40),
            sampling=SamplingConfig(sampler="ddim", steps=3, max_steps=5, guidance=2.0),
            size=16,
            dtype="float32",
        ),
        **changes,
    )


def make(*, edits: bool, **changes: Any) -> Painter:
    """The decoder, not yet random in any useful way."""
    sizes = config(edits=edits, **changes)
    return PAINTERS[edits](sizes, link_width=LINK_WIDTH, rngs=Rngs(0))


@functools.cache
def painter(edits: bool) -> Painter:
    """The decoder with random weights everywhere."""
    return randomized(lambda: make(edits=edits), std=0.1)


def links(rows: int, places: int = 1, seed: int = 0) -> Links:
    """Random link states; all links exist."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, places, QUERIES, LINK_WIDTH)).astype(np.float32)
    return Links(jnp.asarray(states), jnp.ones((rows, places), bool))


def targets(rows: int, *, edits: bool, seed: int = 0) -> dict[str, jax.Array]:
    """Random pictures and captions."""
    rng, sizes = np.random.default_rng(seed), config(edits=edits)
    names = ("image", "input") if edits else ("image",)
    shape = (rows, sizes.size, sizes.size, 3)
    found = {name: jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)) for name in names}
    caption = rng.integers(0, sizes.text.vocab, (rows, sizes.text.length), dtype=np.int32)
    return found | {"caption": jnp.asarray(caption), "has_caption": jnp.ones(rows, bool)}
