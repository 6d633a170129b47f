# SPDX-License-Identifier: Apache-2.0
"""A released VisionLLM v2 checkpoint: the tables of its parts, each behind its official prefix."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vllm2_jax.convert import (
    bridge,
    clip,
    diffusion,
    grounding_dino,
    internlm2,
    internvit,
    llama,
    lora,
    regions,
    unipose,
)
from vllm2_jax.convert.rules import ConversionError, Rule, Table, prefixed
from vllm2_jax.convert.rules import export as export_tensors
from vllm2_jax.convert.rules import load as load_tensors
from vllm2_jax.model import ModelConfig, VisionLLMv2
from vllm2_jax.tokens import BANKS
from vllm2_jax.vision.clip import CLIPConfig

# Names that a language model's checkpoint goes by; both fill the same parameters.
LLM_TABLES = {"llama": llama.table, "internlm2": internlm2.table}

# Decoder -> its table, (official prefix, table of its config). Decoders add themselves here.
DECODER_TABLES: dict[str, tuple[str, Callable[[Any], Table]]] = {
    "grounding_dino": ("gdino.", grounding_dino.table),
    "unipose": ("unipose.", unipose.table),
    "stable_diffusion": ("sd.", diffusion.table),
    "instruct_pix2pix": ("ip2p.", diffusion.table),
}


def table(config: ModelConfig, llm: str = "llama") -> Table:
    """Rows for every tensor of a checkpoint of this model.

    Args:
      config: of the model.
      llm: a key of `LLM_TABLES`.

    Raises:
      ConversionError: a decoder without a table.
    """
    vision = config.vision
    tower = clip.table(vision) if isinstance(vision, CLIPConfig) else internvit.table(vision)
    rows = [
        *prefixed(tower, "vis_encoder.", "vision/"),
        *prefixed(bridge.table(config.bridge), "vl_bridge.", "bridge/"),
        *prefixed(regions.table(config.regions), "region_encoder.", "regions/"),
        *(Rule(rf"emb_embeddings_{bank}\.weight", f"queries/{bank}") for bank in BANKS),
        *prefixed(LLM_TABLES[llm](config.llm), "llm.", "llm/"),
    ]
    for name, part in config.decoders.items():
        if name not in DECODER_TABLES:
            raise ConversionError(f"no weight table for the decoder {name!r}; add one to DECODER_TABLES")
        prefix, rows_of = DECODER_TABLES[name]
        rows += prefixed(rows_of(part), prefix, f"decoders/{name}/")
    return rows


def load(tensors: Mapping[str, Any], model: VisionLLMv2, config: ModelConfig) -> VisionLLMv2:
    """The model with a released checkpoint's weights.

    Args:
      tensors: official name -> array; may be lazy, see `rules.load`. Names that peft has changed are
        understood.
      model: abstract or real, sharded or not; gives shapes, dtypes and places.
      config: of the model.

    Raises:
      ConversionError: lists every tensor that does not fit.
    """
    return load_tensors(lora.plain_names(tensors), table(config, names_of(tensors)), model)


def export(model: Any, config: ModelConfig, llm: str = "llama") -> dict[str, np.ndarray]:
    """Official names and arrays of a model, of its state, or of a gradient."""
    return export_tensors(model, table(config, llm))


def names_of(tensors: Mapping[str, Any]) -> str:
    """Which of `LLM_TABLES` a checkpoint uses."""
    return "internlm2" if any(".tok_embeddings." in name for name in tensors) else "llama"
