# SPDX-License-Identifier: Apache-2.0
"""Sizes of the task decoders from the shapes of their tensors.

The released config.json was not at hand when this was written, and the official code reads some of its
fields under other names than it sets; shapes cannot lie. What shapes do not tell (heads, temperatures,
dropout) comes from the decoder's part of config.json where it has it, and is the released choice otherwise.
A tensor that is missing leaves the released size in its place: the table then lists it as missing.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vllm2_jax.decoders.diffusion.config import EDIT, PainterConfig
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.vision.swin import SwinConfig

Shapes = Mapping[str, tuple[int, ...]]
CLIP_HEAD = 64  # width of a head in all of CLIP's text encoders


class Seen:
    """The shapes of one part, by official names without its prefix."""

    def __init__(self, shapes: Shapes, prefix: str = ""):
        self.shapes = {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}

    def size(self, name: str, axis: int, default: int) -> int:
        """Length of an axis of a tensor."""
        shape = self.shapes.get(name, ())
        return shape[axis] if -len(shape) <= axis < len(shape) else default

    def count(self, pattern: str, default: int) -> int:
        """How many numbers the first group of `pattern` takes at the start of a name."""
        found = {match[1] for name in self.shapes if (match := re.match(pattern, name))}
        return len(found) or default

    def inside(self, prefix: str) -> "Seen":
        """The part of it behind a prefix."""
        return Seen(self.shapes, prefix)


def grounding_dino(official: Mapping[str, Any], seen: Seen) -> GroundingDINOConfig:
    """Sizes of the grounding decoder; `official` is `gdino_config` of config.json.

    The checkpoint says which stages of the backbone come out. With four of them masks are read at stride 4,
    as the official code demands; transformers' own Grounding DINO has three: masks are then read at stride 8.
    """
    base = GroundingDINOConfig()
    encoder, decoder = "model.encoder.layers.0.deformable_layer.", "model.decoder.layers.0."
    heads = official.get("encoder_attention_heads", base.encoder_heads)
    decoder_heads = official.get("decoder_attention_heads", base.decoder_heads)
    levels = seen.size("model.level_embed", 0, base.levels)
    weights = "attn.attention_weights.bias"
    backbone = dataclasses.replace(
        transformers_swin(seen.inside("model.backbone.conv_encoder.model."), base.backbone),
        drop_path=official.get("backbone_config", {}).get("drop_path_rate", base.backbone.drop_path),
    )
    return dataclasses.replace(
        base,
        backbone=backbone,
        width=seen.size("model.level_embed", 1, base.width),
        levels=levels,
        queries=seen.size("model.query_position_embeddings.weight", 0, base.queries),
        encoder_layers=seen.count(r"model\.encoder\.layers\.(\d+)\.", base.encoder_layers),
        encoder_heads=heads,
        encoder_mlp=seen.size(encoder + "fc1.bias", 0, base.encoder_mlp),
        encoder_points=_points(seen, f"{encoder}self_{weights}", heads * levels, base.encoder_points),
        decoder_layers=seen.count(r"model\.decoder\.layers\.(\d+)\.", base.decoder_layers),
        decoder_heads=decoder_heads,
        decoder_mlp=seen.size(decoder + "fc1.bias", 0, base.decoder_mlp),
        decoder_points=_points(
            seen, f"{decoder}encoder_{weights}", decoder_heads * levels, base.decoder_points
        ),
        mask_width=seen.size("model.mask_features.bias", 0, base.mask_width),
        temperature=float(official.get("positional_embedding_temperature", base.temperature)),
        dropout=official.get("dropout", base.dropout),
        drop_path=official.get("fusion_droppath", base.drop_path),
    )


def unipose(official: Mapping[str, Any], seen: Seen) -> UniPoseConfig:
    """Sizes of the pose decoder; `official` is `unipose_config` of config.json."""
    base = UniPoseConfig()
    heads = official.get("nheads", base.heads)
    cells = "transformer.encoder.layers.0."
    layers = seen.count(r"transformer\.decoder\.layers\.(\d+)\.", base.box_layers + base.keypoint_layers)
    boxes = official.get("num_box_decoder_layers", base.box_layers)
    levels = seen.size("transformer.level_embed", 0, base.levels)
    queries = seen.size("transformer.tgt_embed.weight", 0, base.queries)
    return dataclasses.replace(
        base,
        backbone=original_swin(seen.inside("backbone.0."), base.backbone),
        width=seen.size("transformer.level_embed", 1, base.width),
        queries=queries,
        instances=min(base.instances, queries),
        heads=heads,
        mlp=seen.size(cells + "linear1.bias", 0, base.mlp),
        points=_points(seen, cells + "self_attn.attention_weights.bias", heads * levels, base.points),
        encoder_layers=seen.count(r"transformer\.encoder\.layers\.(\d+)\.", base.encoder_layers),
        box_layers=boxes,
        keypoint_layers=layers - boxes,
        temperature=float(official.get("pe_temperatureH", base.temperature)),
        drop_path=official.get("fusion_droppath", base.drop_path),
    )


def stable_diffusion(official: Mapping[str, Any], seen: Seen) -> PainterConfig:
    """Sizes of the decoder that generates; nothing in config.json changes them."""
    return _painter(PainterConfig(), seen)


def instruct_pix2pix(official: Mapping[str, Any], seen: Seen) -> PainterConfig:
    """Sizes of the decoder that edits."""
    return _painter(EDIT, seen)


def transformers_swin(seen: Seen, base: SwinConfig) -> SwinConfig:
    """A Swin in the names of transformers; the norms say which stages come out."""
    found = {
        match[1] for name in seen.shapes if (match := re.match(r"hidden_states_norms\.stage(\d+)", name))
    }
    table, wide = "attention.self.relative_position_bias_table", "intermediate.dense.bias"
    sizes = _swin(seen, base, r"encoder\.layers\.", "embeddings.norm.bias", table, wide)
    return dataclasses.replace(sizes, stages=_stages(found, 1, sizes, base))


def original_swin(seen: Seen, base: SwinConfig) -> SwinConfig:
    """A Swin in its original names."""
    found = {match[1] for name in seen.shapes if (match := re.match(r"norm(\d+)\.", name))}
    table = "attn.relative_position_bias_table"
    sizes = _swin(seen, base, r"layers\.", "patch_embed.norm.bias", table, "mlp.fc1.bias")
    return dataclasses.replace(sizes, stages=_stages(found, 0, sizes, base))


def _swin(seen: Seen, base: SwinConfig, layers: str, norm: str, table: str, wide: str) -> SwinConfig:
    count = seen.count(layers + r"(\d+)\.blocks", len(base.depths))
    blocks = [f"{layers}{stage}\\.blocks\\." for stage in range(count)]
    plain = [block.replace("\\", "") + "0." for block in blocks]
    default = base if count == len(base.depths) else dataclasses.replace(base, depths=(2,) * count)
    heads = default.heads if count == len(base.depths) else (1,) * count
    width = seen.size(norm, 0, base.width)
    cells = seen.size(plain[0] + table, 0, (2 * base.window - 1) ** 2)
    return dataclasses.replace(
        base,
        width=width,
        depths=tuple(seen.count(blocks[i] + r"(\d+)\.", default.depths[i]) for i in range(count)),
        heads=tuple(seen.size(plain[i] + table, 1, heads[i]) for i in range(count)),
        window=(math.isqrt(cells) + 1) // 2,
        mlp_ratio=seen.size(plain[0] + wide, 0, int(width * base.mlp_ratio)) / width,
        stages=tuple(stage for stage in base.stages if stage < count),
    )


def _stages(found: set[str], first: int, sizes: SwinConfig, base: SwinConfig) -> tuple[int, ...]:
    stages = tuple(sorted(int(number) - first for number in found))
    return stages if stages and stages[-1] < len(sizes.depths) else base.stages


def _painter(base: PainterConfig, seen: Seen) -> PainterConfig:
    unet, vae, text = (seen.inside(f"sd_{name}.") for name in ("unet", "vae", "text_encoder"))
    text = text.inside("text_model.")
    width = text.size("final_layer_norm.bias", 0, base.text.width)
    vocab = text.size("embeddings.token_embedding.weight", 0, base.text.vocab)
    widths = _widths(unet, "down_blocks.{}.resnets.0.conv1.bias", base.unet.widths)
    attends = tuple(
        f"down_blocks.{level}.attentions.0.norm.bias" in unet.shapes for level in range(len(widths))
    )
    return dataclasses.replace(
        base,
        unet=dataclasses.replace(
            base.unet,
            channels=unet.size("conv_in.weight", 1, base.unet.channels),
            channels_out=unet.size("conv_out.bias", 0, base.unet.channels_out),
            widths=widths,
            attends=attends if any(attends) else base.unet.attends,
            depth=unet.count(r"down_blocks\.0\.resnets\.(\d+)\.", base.unet.depth),
            context=width,
        ),
        vae=dataclasses.replace(
            base.vae,
            widths=_widths(vae, "encoder.down_blocks.{}.resnets.0.conv1.bias", base.vae.widths),
            depth=vae.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", base.vae.depth),
            latent=vae.size("post_quant_conv.bias", 0, base.vae.latent),
        ),
        text=dataclasses.replace(
            base.text,
            vocab=vocab,
            width=width,
            depth=text.count(r"encoder\.layers\.(\d+)\.", base.text.depth),
            heads=width // CLIP_HEAD,
            mlp=text.size("encoder.layers.0.mlp.fc1.bias", 0, base.text.mlp),
            length=text.size("embeddings.position_embedding.weight", 0, base.text.length),
            start=vocab - 2,  # CLIP's tokenizer ends with these two
            end=vocab - 1,
        ),
        mapper=dataclasses.replace(
            base.mapper, mlp=seen.size("llm2sd_mapper.encoder.layers.0.linear1.bias", 0, base.mapper.mlp)
        ),
    )


def _widths(seen: Seen, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    levels = [level for level in range(len(seen.shapes)) if name.format(level) in seen.shapes]
    return tuple(seen.size(name.format(level), 0, 0) for level in levels) or default


def _points(seen: Seen, name: str, each: int, default: int) -> int:
    """Points of a head and level, from all attention weights."""
    return seen.size(name, 0, each * default) // each
