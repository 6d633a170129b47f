# SPDX-License-Identifier: Apache-2.0
"""The official config.json (and the tensors' shapes) -> `ModelConfig`.

Sizes of tower and language model come from `vis_encoder_config` and `llm_config`. Which decoders, which
bridge and which adapters there are is read from the tensors themselves: a checkpoint saved after another
stage than its config's flags say is still read right, and what is missing is found by the table.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from vllm2_jax.convert import decoder_sizes, lora
from vllm2_jax.convert.decoder_sizes import Seen
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.llm.llama import LlamaConfig
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.model import ModelConfig
from vllm2_jax.nn.rope import SCALINGS, RopeConfig
from vllm2_jax.tokens import QueryCounts
from vllm2_jax.vision import VisionConfig
from vllm2_jax.vision.bridge import BridgeConfig
from vllm2_jax.vision.clip import CLIPConfig
from vllm2_jax.vision.internvit import InternViTConfig
from vllm2_jax.vision.regions import RegionConfig

# Official prefix -> decoder, and its sizes from its part of config.json and its shapes.
DECODERS: dict[str, tuple[str, Callable[[Mapping[str, Any], Seen], Any]]] = {
    "gdino": ("grounding_dino", decoder_sizes.grounding_dino),
    "unipose": ("unipose", decoder_sizes.unipose),
    "sd": ("stable_diffusion", decoder_sizes.stable_diffusion),
    "ip2p": ("instruct_pix2pix", decoder_sizes.instruct_pix2pix),
}


def model_config(
    official: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str = "bfloat16",
) -> ModelConfig:
    """Sizes of the model that a checkpoint holds.

    Args:
      official: config.json.
      shapes: official name -> shape, of all tensors.
      dtype: of products and activations.

    Raises:
      ConversionError: a part without a config, or of an unknown kind.
    """
    shapes = {lora.plain_name(name): shape for name, shape in shapes.items()}
    for part in ("vis_encoder_config", "llm_config"):
        if not isinstance(official.get(part), Mapping):
            raise ConversionError(f"config.json has no {part}; it is not that of a VisionLLM v2")
    try:
        vision = vision_config(official["vis_encoder_config"])
        llm = llm_config(official["llm_config"], shapes)
    except KeyError as error:
        raise ConversionError(
            f"config.json lacks {error.args[0]!r} in vis_encoder_config or llm_config"
        ) from None
    internvit = isinstance(vision, InternViTConfig)
    found = {}
    for prefix, (name, sizes) in DECODERS.items():
        if any(key.startswith(f"{prefix}.") for key in shapes):
            try:
                found[name] = sizes(official.get(f"{prefix}_config") or {}, Seen(shapes, f"{prefix}."))
            except ValueError as error:
                raise ConversionError(f"the shapes of {prefix}.* make no {name}: {error}") from None
    seen = Seen(shapes)
    return ModelConfig(
        vision=vision,
        vision_layer=official.get("vis_output_layer", -1 if internvit else -2),
        bridge=_bridge(official, shapes, vision.width, llm.width, internvit),
        regions=RegionConfig(
            hidden=seen.size("region_encoder.mask_embedding.3.bias", 0, RegionConfig.hidden),
            pooling="cross_attn" if "region_encoder.region_query.weight" in shapes else RegionConfig.pooling,
            width=vision.width,
            width_out=llm.width,
            patch=vision.patch,
        ),
        llm=llm,
        queries=QueryCounts(
            perception=seen.size("emb_embeddings_det.weight", 0, official.get("num_embs", 4)),
            generation=seen.size("emb_embeddings_gen.weight", 0, official.get("num_embs_gen", 64)),
        ),
        decoders={name: dataclasses.replace(config, dtype=dtype) for name, config in found.items()},
        dtype=dtype,
    )


def vision_config(official: Mapping[str, Any]) -> VisionConfig:
    """Sizes of the tower: InternViT where the config speaks of `qk_normalization`, CLIP otherwise.

    Raises:
      ConversionError: an activation that this tower does not have here.
    """
    official = official.get("vision_config", official)  # CLIP's own folder has text and image side by side
    sizes = {
        "width": official["hidden_size"],
        "depth": official["num_hidden_layers"],
        "heads": official["num_attention_heads"],
        "mlp": official["intermediate_size"],
        "image_size": official["image_size"],
        "patch": official["patch_size"],
    }
    internvit = "qk_normalization" in official
    _check_activation(official, "gelu" if internvit else "quick_gelu", "tower")
    if internvit:
        return InternViTConfig(
            **sizes,
            eps=official.get("layer_norm_eps", 1e-6),
            qkv_bias=official.get("qkv_bias", False),
            qk_norm=official["qk_normalization"],
        )
    return CLIPConfig(**sizes, eps=official.get("layer_norm_eps", 1e-5))


def llm_config(official: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LlamaConfig:
    """Sizes of a Llama or an InternLM2. The vocabulary is that of the tensors, which may have grown.

    Raises:
      ConversionError: an activation, a scaling of positions or adapters that our modules do not have.
    """
    _check_activation(official, "silu", "language model")
    heads = official["num_attention_heads"]
    embed = [s for n, s in shapes.items() if n.endswith(("embed_tokens.weight", "tok_embeddings.weight"))]
    bias = bool(official.get("bias", official.get("attention_bias", False)))
    return LlamaConfig(
        vocab=embed[0][0] if embed else official["vocab_size"],
        width=official["hidden_size"],
        depth=official["num_hidden_layers"],
        heads=heads,
        kv_heads=official.get("num_key_value_heads") or heads,
        mlp=official["intermediate_size"],
        rms_eps=official.get("rms_norm_eps", 1e-6),
        rope=_rope(official),
        qkv_bias=bias,
        out_bias=bias,
        lora=_lora(shapes),
    )


def _check_activation(official: Mapping[str, Any], known: str, part: str) -> None:
    """Raises ConversionError for another activation than the one that our modules compute."""
    if (found := official.get("hidden_act", known)) != known:
        raise ConversionError(f"the {part}'s hidden_act is {found!r}, only {known!r} is known")


def _rope(official: Mapping[str, Any]) -> RopeConfig:
    """How positions turn: all in `rope_parameters` since transformers 5, before in two fields."""
    found: dict[str, Any] = {"rope_theta": official.get("rope_theta", 10_000.0)}
    found |= (official.get("rope_scaling") or {}) | (official.get("rope_parameters") or {})
    scaling = found.get("rope_type", found.get("type", "default"))
    if scaling not in ("default", *SCALINGS):
        known = ", ".join(SCALINGS)
        raise ConversionError(f"the language model's rope_type is {scaling!r}, only {known} are known")
    return RopeConfig(
        theta=float(found["rope_theta"]),
        scaling="none" if scaling == "default" else scaling,
        factor=float(found.get("factor", 1.0)),
        max_positions=official.get("max_position_embeddings", 4096),
    )


# Projection in official names (Llama's, InternLM2's) -> ours.
ADAPTED = {
    **{f"{name}_proj": name for name in ("q", "k", "v", "gate", "up", "down")},
    **{"o_proj": "out", "wqkv": "q|k|v", "wo": "out", "w1": "gate", "w3": "up", "w2": "down"},
}


def _lora(shapes: Mapping[str, tuple[int, ...]]) -> LoRAConfig | None:
    """The rank is that of the tensors; the strength is the official alpha = 2 * rank (core, use_llm_lora)."""
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight")}
    if len(ranks) > 1:
        raise ConversionError(f"adapters of several ranks {sorted(ranks)}; one rank is understood")
    if not ranks:
        return None
    found = {match[1] for name in shapes if (match := re.search(r"\.(\w+)\.lora_A\.weight$", name))}
    if unknown := sorted(found - ADAPTED.keys()):
        raise ConversionError(f"adapters of {', '.join(unknown)}; understood are {', '.join(ADAPTED)}")
    targets = "|".join(dict.fromkeys(ADAPTED[name] for name in ADAPTED if name in found))
    return LoRAConfig(rank=min(ranks), alpha=2.0 * min(ranks), targets=targets)


def _bridge(
    official: Mapping[str, Any], shapes: Mapping[str, Any], width: int, width_out: int, internvit: bool
) -> BridgeConfig:
    """The official `vl_bridge_type`; pixel shuffle is seen from the width that the bridge takes."""
    kind = official.get("vl_bridge_type") or ("internvl_mlp" if internvit else "mlp2x_gelu")
    kind = "internvl_mlp" if kind == "internvl" else kind  # two names for one bridge
    first = shapes.get("vl_bridge.0.weight") or shapes.get("vl_bridge.weight") or (width,)
    shuffle = first[-1] == 4 * width
    try:
        return BridgeConfig(kind=kind, pixel_shuffle=shuffle, width_in=width, width_out=width_out)
    except ValueError as error:
        raise ConversionError(f"config.json, vl_bridge_type: {error}") from None
