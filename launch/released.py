# SPDX-License-Identifier: Apache-2.0
"""The config of a run with a given model: what makes converted weights a workdir that can be asked."""

import dataclasses
from typing import Any

import ml_collections

from configs import base, stage3_paint_7b
from configs.groups import GROUPS
from configs.mixtures import MIXTURES
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.model import ModelConfig
from vllm2_jax.vision import VISION

# Decoder -> the mixture that says how it is asked, how large its pictures are and how many objects they have.
_SEEING = {"grounding_dino": ("detection", "grounding"), "unipose": ("pose",)}


def run_config(model: ModelConfig, tokenizer: str = "") -> ml_collections.ConfigDict:
    """`configs/base.py` with this model; `launch.build.model_config` turns it back.

    Args:
      model: sizes.
      tokenizer: folder of its tokenizer.
    """
    config = base.get_config("7b")
    config.dtype = model.dtype
    config.data.tokenizer = tokenizer
    config.data.length = model.llm.rope.max_positions
    vision, regions, llm = (dataclasses.asdict(part) for part in (model.vision, model.regions, model.llm))
    kinds = {cls: kind for kind, (cls, _) in VISION.items()}
    adapters = dataclasses.asdict(model.llm.lora or dataclasses.replace(LoRAConfig(), rank=0))
    sizes: dict[str, Any] = {
        "vision": {"kind": kinds[type(model.vision)], **_without(vision, "attention")},
        "vision_layer": model.vision_layer,
        "bridge": {"kind": model.bridge.kind, "pixel_shuffle": model.bridge.pixel_shuffle},
        "regions": _without(regions, "width", "width_out", "patch"),
        "llm": {**llm, "lora": adapters},
        "queries": dataclasses.asdict(model.queries),
        "decoders": {
            name: _without(dataclasses.asdict(part), "dtype") for name, part in model.decoders.items()
        },
    }
    mixtures = [MIXTURES[name] for seeing in _SEEING.values() for name in seeing]
    mixtures.append(_painting())
    asked = {
        task: entry
        for mixture in mixtures
        for task, entry in mixture.items()
        if entry["decoder"] in model.decoders
    }
    with config.unlocked(), config.ignore_type():
        config.model = sizes
        config.optimizer.groups = GROUPS["all_links"]  # fits every model
        if asked:
            config.data.mixture = asked
    return config


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _painting() -> dict[str, Any]:
    """The tasks that paint. Captions are for training; their tokenizer may not be here."""
    tasks = stage3_paint_7b.get_config().data.mixture.to_dict()
    return {
        task: {**entry, "capacities": _without(entry["capacities"], "tokenizer")}
        for task, entry in tasks.items()
    }
