# SPDX-License-Identifier: Apache-2.0
"""Both UNets: output and every block; odd sides, a time between two steps and a shorter text."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.diffusion import build, nchw, nhwc, whole
from vllm2_jax.decoders.diffusion.blocks import upsample
from vllm2_jax.decoders.diffusion.unet import UNet, time_features


def first_blocks(unet: UNet, x: jax.Array, time: jax.Array, context: jax.Array) -> dict[str, jax.Array]:
    """The parts up to the first transformer: outputs by their official names."""
    found = {"time_proj": time_features(time, unet.config.widths[0]), "time_embedding": unet.embed_time(time)}
    told = jax.nn.silu(found["time_embedding"])
    found["conv_in"] = x = unet.conv_in(x)
    found["down_blocks.0.resnets.0"] = x = unet.down[0].resnets[0](x, told)
    if len(unet.down[0].transformers):
        found["down_blocks.0.attentions.0"] = unet.down[0].transformers[0](x, context)
    return found


def walk(unet: UNet, x: jax.Array, time: jax.Array, context: jax.Array) -> dict[str, jax.Array]:
    """All parts one by one."""
    found = first_blocks(unet, x, time, context)
    told, x = jax.nn.silu(found["time_embedding"]), found["conv_in"]
    skips = [x]
    for i, level in enumerate(unet.down):
        for number in range(len(level.resnets)):
            x = level.block(number, x, told, context)
            skips.append(x)
        if level.resample is not None:
            x = level.resample(x)
            skips.append(x)
        found[f"down_blocks.{i}"] = x
    found["mid_block"] = x = unet.middle_out(unet.middle.block(0, x, told, context), told)
    for i, level in enumerate(unet.up):
        for number in range(len(level.resnets)):
            x = level.block(number, jnp.concatenate([x, skips.pop()], axis=-1), told, context)
        if level.resample is not None:
            x = level.resample(upsample(x, skips[-1].shape[1:3]))
        found[f"up_blocks.{i}"] = x
    found["conv_norm_out"] = unet.norm_out(x)
    return found


def cases(folder: pathlib.Path) -> Iterator[Case]:
    for name, edits in (("unet4", False), ("unet8", True)):
        if not (folder / f"{name}_forward.npz").exists():
            continue
        data = goldens.arrays(folder, f"{name}_forward")
        unet = build(folder, edits=edits).unet
        inputs = nhwc(data["sample"]), jnp.asarray(data["timesteps"]), jnp.asarray(data["context"])
        with jax.default_matmul_precision("highest"):
            parts = jax.jit(walk if whole(folder) else first_blocks)(unet, *inputs)
        recorded = {key.removeprefix("mid:") for key in data if key.startswith("mid:")}
        assert recorded == set(parts), recorded ^ set(parts)
        for key, value in parts.items():
            yield f"{name} {key}", np.asarray(nchw(value)), data[f"mid:{key}"]
        if whole(folder):
            with jax.default_matmul_precision("highest"):
                out = jax.jit(type(unet).__call__)(unet, *inputs)
                odd = [data[f"odd_{key}"] for key in ("sample", "timestep", "context")]
                odd_out = unet(nhwc(odd[0]), jnp.asarray(odd[1]), jnp.asarray(odd[2]))
            yield f"{name} noise", nchw(out), data["out"]
            yield f"{name} noise, odd sides", nchw(odd_out), data["odd_out"]
