# SPDX-License-Identifier: Apache-2.0
"""Pipelines of diffusers as folders: Stable Diffusion 1.5, InstructPix2Pix and models made like them.

    unet/            config.json, diffusion_pytorch_model.safetensors
    vae/             the same
    text_encoder/    config.json, model.safetensors
    scheduler/       scheduler_config.json

What a pipeline lacks is the mapper from super links. Reading says which other choices of these classes
our modules do not have, by name; writing makes a folder that diffusers opens.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from vllm2_jax.convert.clip import text_table
from vllm2_jax.convert.diffusion import unet_table, vae_table
from vllm2_jax.convert.rules import ConversionError, Table, export, load
from vllm2_jax.decoders.diffusion.config import (
    PainterConfig,
    SamplingConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from vllm2_jax.decoders.diffusion.painter import Painter

Value = TypeVar("Value")

# Folder -> file of weights.
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
# Scheduler class of diffusers -> our sampler.
SCHEDULERS = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
}
# Names of the autoencoder's attention before diffusers 0.18; Stable Diffusion 1.5's files still have them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Fields of the official configs with the only value that our modules know; absent ones have it by default.
_ONLY: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu",
        "center_input_sample": False,
        "class_embed_type": None,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    },
    "vae": {"act_fn": "silu", "in_channels": 3, "out_channels": 3},
    "text_encoder": {"hidden_act": "quick_gelu"},
    "scheduler": {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "trained_betas": None},
}


def read_config(folder: str | pathlib.Path, **others: Any) -> PainterConfig:
    """The config of a pipeline.

    Args:
      folder: of the pipeline.
      others: fields of `PainterConfig` that a pipeline does not have (mapper, drop_rate, size, dtype, ...).

    Raises:
      ConversionError: a file is missing, or a choice is one that our modules do not have; lists all of them.
    """
    found = {name: _read(pathlib.Path(folder), name) for name in (*FILES, "scheduler")}
    wrong = [
        f"{part}: {field} is {found[part][field]!r}, only {value!r} is known"
        for part, fields in _ONLY.items()
        for field, value in fields.items()
        if found[part].get(field, value) != value
    ]
    unet, vae, text, noise = found.values()
    attends = [kind == "CrossAttnDownBlock2D" for kind in unet["down_block_types"]]
    mirrored = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    if list(unet["up_block_types"]) != mirrored:
        wrong.append(f"unet: up_block_types {unet['up_block_types']} do not mirror down_block_types")
    if not isinstance(unet["attention_head_dim"], int):
        wrong.append(f"unet: attention_head_dim {unet['attention_head_dim']} differs between levels")
    if wrong:
        raise ConversionError(f"{folder} is no pipeline of this kind:\n  " + "\n  ".join(wrong))
    defaults = SamplingConfig(sampler=SCHEDULERS.get(noise.get("_class_name", ""), "pndm"))
    return PainterConfig(
        **{
            "unet": UNetConfig(
                channels=unet["in_channels"],
                channels_out=unet["out_channels"],
                widths=tuple(unet["block_out_channels"]),
                attends=tuple(attends),
                depth=unet["layers_per_block"],
                heads=unet["attention_head_dim"],
                context=unet["cross_attention_dim"],
                groups=unet["norm_num_groups"],
            ),
            "vae": VAEConfig(
                widths=tuple(vae["block_out_channels"]),
                depth=vae["layers_per_block"],
                latent=vae["latent_channels"],
                groups=vae["norm_num_groups"],
                scale=vae.get("scaling_factor", VAEConfig.scale),
            ),
            "text": TextConfig(
                vocab=text["vocab_size"],
                width=text["hidden_size"],
                depth=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                mlp=text["intermediate_size"],
                length=text["max_position_embeddings"],
                **_ends(text),
                eps=text.get("layer_norm_eps", TextConfig.eps),
            ),
            "schedule": ScheduleConfig(noise["num_train_timesteps"], noise["beta_start"], noise["beta_end"]),
            "sampling": defaults,
            "size": unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
            **others,
        }
    )


def load_pipeline(folder: str | pathlib.Path, painter: Painter) -> Painter:
    """A decoder with a pipeline's UNet, autoencoder and text encoder; the mapper stays as it is.

    Args:
      folder: of the pipeline.
      painter: abstract or real, sharded or not; its arrays are not changed.

    Raises:
      ConversionError: a file is missing, or lists every tensor that does not fit.
    """
    made = jax.tree.map(lambda leaf: leaf, painter)
    for name, (attribute, table) in _parts(painter.config).items():
        file = pathlib.Path(folder) / name / FILES[name]
        if not file.is_file():
            raise ConversionError(f"{file} is missing; fetch the safetensors files of the pipeline")
        tensors = load_file(file)
        if name == "vae":
            tensors = new_attention_names(tensors)
        setattr(made, attribute, load(tensors, table, getattr(painter, attribute)))
    return made


def save_pipeline(painter: Painter, folder: str | pathlib.Path) -> None:
    """Writes UNet, autoencoder and text encoder with their configs, as `load_pipeline` reads them."""
    config = painter.config
    for name, (attribute, table) in _parts(config).items():
        place = pathlib.Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        tensors = export(getattr(painter, attribute), table)
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(tensors, place / FILES[name], metadata={"format": "pt"})
    for name, fields in official_configs(config).items():
        place = pathlib.Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        (place / _config_file(name)).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def official_configs(config: PainterConfig) -> dict[str, dict[str, Any]]:
    """Folder -> fields of its config file, `read_config` backwards."""
    unet, vae, text, noise = config.unet, config.vae, config.text, config.schedule
    cross = ["CrossAttn" if attends else "" for attends in unet.attends]
    levels = len(vae.widths)
    schedulers = {ours: theirs for theirs, ours in SCHEDULERS.items()}
    return {
        "unet": {
            **_ONLY["unet"],
            "_class_name": "UNet2DConditionModel",
            "in_channels": unet.channels,
            "out_channels": unet.channels_out,
            "block_out_channels": unet.widths,
            "down_block_types": [f"{kind}DownBlock2D" for kind in cross],
            "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(cross)],
            "layers_per_block": unet.depth,
            "attention_head_dim": unet.heads,
            "cross_attention_dim": unet.context,
            "norm_num_groups": unet.groups,
            "sample_size": config.latents,
        },
        "vae": {
            **_ONLY["vae"],
            "_class_name": "AutoencoderKL",
            "block_out_channels": vae.widths,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": vae.depth,
            "latent_channels": vae.latent,
            "norm_num_groups": vae.groups,
            "scaling_factor": vae.scale,
            "sample_size": config.size,
        },
        "text_encoder": {
            **_ONLY["text_encoder"],
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": text.vocab,
            "hidden_size": text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp,
            "max_position_embeddings": text.length,
            "layer_norm_eps": text.eps,
            "bos_token_id": text.start,
            "eos_token_id": text.end,
            "pad_token_id": text.end,
        },
        "scheduler": {
            **_ONLY["scheduler"],
            "_class_name": schedulers[config.sampling.sampler],
            "num_train_timesteps": noise.steps,
            "beta_start": noise.first,
            "beta_end": noise.last,
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "clip_sample": False,
            "steps_offset": 1,
        },
    }


def new_attention_names(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """An autoencoder's tensors with its attentions in the newer spelling; others keep their names."""

    def renamed(name: str) -> str:
        match = re.fullmatch(r"(.*\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.(.*)", name)
        return f"{match[1]}{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name

    return {renamed(name): value for name, value in tensors.items()}


def _ends(text: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of start and end. Old configs of CLIP state 0 and 2, its tokenizer uses the last two."""
    if text.get("eos_token_id", 2) == 2:
        return {"start": text["vocab_size"] - 2, "end": text["vocab_size"] - 1}
    return {"start": text["bos_token_id"], "end": text["eos_token_id"]}


def _parts(config: PainterConfig) -> dict[str, tuple[str, Table]]:
    """Folder -> attribute of the decoder and table of its weights."""
    return {
        "unet": ("unet", unet_table(config.unet)),
        "vae": ("vae", vae_table(config.vae)),
        "text_encoder": ("text", text_table(config.text.heads)),
    }


def _config_file(name: str) -> str:
    return "scheduler_config.json" if name == "scheduler" else "config.json"


def _read(folder: pathlib.Path, name: str) -> dict[str, Any]:
    file = folder / name / _config_file(name)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{file} is missing; fetch the whole pipeline") from error
    except json.JSONDecodeError as error:
        raise ConversionError(f"{file} is not JSON ({error})") from error
