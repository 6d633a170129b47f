# SPDX-License-Identifier: Apache-2.0
"""The golden decoders that paint, in float32, at the sizes that the folder's info.json states."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import goldens
from tests.parity.weights import load
from vllm2_jax.batch import Links
from vllm2_jax.convert import diffusion as convert
from vllm2_jax.convert.rules import export
from vllm2_jax.decoders.diffusion.config import (
    MapperConfig,
    PainterConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from vllm2_jax.decoders.diffusion.instruct_pix2pix import InstructPix2Pix
from vllm2_jax.decoders.diffusion.painter import Painter
from vllm2_jax.decoders.diffusion.stable_diffusion import StableDiffusion
from vllm2_jax.nn.rngs import Rngs

PAINTERS = {False: StableDiffusion, True: InstructPix2Pix}


def info(folder: pathlib.Path) -> dict:
    """Sizes, token ids and scheduler settings of the golden set."""
    return json.loads((folder / "info.json").read_text())


def config(folder: pathlib.Path, *, edits: bool) -> PainterConfig:
    """Sizes of the golden decoder that generates or edits."""
    found = info(folder)
    unet, vae, text = found["unet8" if edits else "unet"], found["vae"], found["text"]
    noise = found["ip2p_scheduler" if edits else "sd_scheduler"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    mlp = len(goldens.weights(folder, "mapper")["llm2sd_mapper.encoder.layers.0.linear1.bias"])
    return PainterConfig(
        unet=UNetConfig(
            channels=unet["in_channels"],
            channels_out=unet["out_channels"],
            widths=tuple(unet["block_out_channels"]),
            attends=tuple(kind.startswith("Cross") for kind in unet["down_block_types"]),
            depth=unet["layers_per_block"],
            heads=unet["attention_head_dim"],
            context=unet["cross_attention_dim"],
            groups=unet["norm_num_groups"],
        ),
        vae=VAEConfig(
            widths=tuple(vae["block_out_channels"]),
            depth=vae["layers_per_block"],
            latent=vae["latent_channels"],
            groups=vae["norm_num_groups"],
            scale=vae["scaling_factor"],
        ),
        text=TextConfig(
            vocab=text["vocab_size"],
            width=text["hidden_size"],
            depth=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            mlp=text["intermediate_size"],
            length=text["max_position_embeddings"],
            start=text["bos_token_id"],
            end=text["eos_token_id"],
            eps=text["layer_norm_eps"],
        ),
        mapper=MapperConfig(heads=found["mapper_heads"], mlp=mlp),
        schedule=ScheduleConfig(noise["num_train_timesteps"], noise["beta_start"], noise["beta_end"]),
        size=factor * unet["sample_size"],
        drop_rate=0.0,
        dtype="float32",
    )


def build(folder: pathlib.Path, *, edits: bool, drop_rate: float = 0.0) -> Painter:
    """The golden decoder with its weights, by their official names."""
    painter = nnx.merge(*nnx.split(_loaded(folder, edits)))
    painter.config = dataclasses.replace(painter.config, drop_rate=drop_rate)
    return painter


@functools.cache
def _loaded(folder: pathlib.Path, edits: bool) -> Painter:
    sizes = config(folder, edits=edits)
    parts = {"sd_unet.": "unet4", "sd_vae.": "vae", "sd_text_encoder.": "text", "": "mapper"}
    tensors = {
        prefix + name: value
        for prefix, file in parts.items()
        for name, value in goldens.weights(folder, file).items()
    }
    if edits:
        new = goldens.weights(folder, "unet8_conv_in")
        tensors |= {f"sd_unet.{name}": value for name, value in new.items()}
    width = info(folder)["llm_hidden"]
    abstract = jax.eval_shape(lambda: PAINTERS[edits](sizes, link_width=width, rngs=Rngs(0)))
    if not whole(folder):
        nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
        tensors = export(nothing, convert.table(sizes)) | tensors
    return load(tensors, convert.table(sizes), abstract)


def whole(folder: pathlib.Path) -> bool:
    """Whether the UNet is complete. The committed part of the golden set holds a few of its blocks only."""
    return "conv_out.weight" in goldens.weights(folder, "unet4")


def nhwc(x: np.ndarray) -> jnp.ndarray:
    """Maps with their channels last; other arrays as they are."""
    return jnp.asarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x)


def nchw(x: jax.Array) -> np.ndarray:
    """Maps with their channels first; other arrays as they are."""
    return np.moveaxis(np.asarray(x), -1, 1) if x.ndim == 4 else np.asarray(x)


def find_links(ids: np.ndarray, token: int) -> np.ndarray:
    """Row and column of every routing token, row by row."""
    return np.stack(np.nonzero(ids == token), axis=1)


def links(folder: pathlib.Path, data: dict[str, np.ndarray], hidden: jax.Array, *, edits: bool) -> Links:
    """The link of each row, which has exactly one."""
    found = info(folder)
    rows, columns = find_links(data["input_ids"], found["edit_id" if edits else "gen_id"]).T
    assert rows.tolist() == list(range(len(hidden)))
    places = columns[:, None] + 1 + np.arange(found["num_embed_tokens"])
    states = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    return Links(states[:, None], jnp.ones((len(rows), 1), bool))
