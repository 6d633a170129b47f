# SPDX-License-Identifier: Apache-2.0
"""Official names of the decoders that paint, and of their parts as diffusers and transformers write them."""

from vllm2_jax.convert.clip import text_table
from vllm2_jax.convert.layers import into_heads, linear, norm, packed_attention
from vllm2_jax.convert.rules import Row, Rule, Table, prefixed
from vllm2_jax.convert.transforms import (
    CONV,
    POINTWISE,
    TRANSPOSE,
    join_heads,
    split_heads,
    split_heads_bias,
    squeeze,
)
from vllm2_jax.decoders.diffusion.config import MapperConfig, PainterConfig, UNetConfig, VAEConfig


def table(config: PainterConfig) -> Table:
    """Rows for one decoder in a released checkpoint, without its prefix (`sd.` or `ip2p.`)."""
    return [
        *mapper_table(config.mapper),
        *prefixed(unet_table(config.unet), "sd_unet.", "unet/"),
        *prefixed(vae_table(config.vae), "sd_vae.", "vae/"),
        *prefixed(text_table(config.text.heads), "sd_text_encoder.", "text/"),
    ]


def mapper_table(config: MapperConfig) -> Table:
    """Rows for the projection, the queries and the transformer that together make text states of a link."""
    rows: list[Row] = [
        *linear(r"emb_proj\.0", "mapper/project/first"),
        *linear(r"emb_proj\.2", "mapper/project/last"),
        Rule(r"llm2sd_mapper_queries", "mapper/queries", squeeze(1)),
    ]
    for part, attentions in (
        ("encoder", {"self_attn": "attention"}),
        ("decoder", {"self_attn": "attention", "multihead_attn": "cross"}),
    ):
        layer, ours = rf"llm2sd_mapper\.{part}\.layers\.0\.", f"mapper/{part}/"
        for official, name in attentions.items():
            rows += packed_attention(layer + official, ours + name, config.heads)
        rows += linear(layer + r"linear1", ours + "mlp/layers/0")
        rows += linear(layer + r"linear2", ours + "mlp/layers/1")
        for number in range(1, len(attentions) + 2):
            rows += norm(rf"{layer}norm{number}", f"{ours}norm{number}")
        rows += norm(rf"llm2sd_mapper\.{part}\.norm", f"mapper/{part}_norm")
    return rows


def unet_table(config: UNetConfig) -> Table:
    """Rows for diffusers' `UNet2DConditionModel` of Stable Diffusion 1.5."""
    rows: list[Row] = [
        *linear(r"conv_in", "conv_in", CONV),
        *linear(r"time_embedding\.linear_1", "time/up"),
        *linear(r"time_embedding\.linear_2", "time/out"),
        *norm(r"conv_norm_out", "norm_out"),
        *linear(r"conv_out", "conv_out", CONV),
        *_resnet(r"mid_block\.resnets\.0", "middle/resnets/0"),
        *_transformer(r"mid_block\.attentions\.0", "middle/transformers/0", config.heads),
        *_resnet(r"mid_block\.resnets\.1", "middle_out"),
    ]
    for way, resample in (("down", "downsamplers"), ("up", "upsamplers")):
        blocks = rf"{way}_blocks\.(\d+)\."
        rows += _resnet(blocks + r"resnets\.(\d+)", f"{way}/{{1}}/resnets/{{2}}")
        rows += _transformer(blocks + r"attentions\.(\d+)", f"{way}/{{1}}/transformers/{{2}}", config.heads)
        rows += linear(rf"{blocks}{resample}\.0\.conv", f"{way}/{{1}}/resample", CONV)
    return rows


def vae_table(config: VAEConfig) -> Table:
    """Rows for diffusers' `AutoencoderKL`, in the newer spelling of its attentions."""
    del config  # all sizes follow from the shapes
    rows: list[Row] = [
        *linear(r"quant_conv", "quant", POINTWISE),
        *linear(r"post_quant_conv", "post_quant", POINTWISE),
    ]
    for part, way, resample in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")):
        blocks = rf"{part}\.{way}_blocks\.(\d+)\."
        rows += [
            *linear(part + r"\.conv_in", f"{part}/conv_in", CONV),
            *_resnet(blocks + r"resnets\.(\d+)", f"{part}/levels/{{1}}/resnets/{{2}}"),
            *linear(rf"{blocks}{resample}\.0\.conv", f"{part}/levels/{{1}}/resample", CONV),
            *_resnet(part + r"\.mid_block\.resnets\.0", f"{part}/middle/first"),
            *_resnet(part + r"\.mid_block\.resnets\.1", f"{part}/middle/last"),
            *norm(part + r"\.mid_block\.attentions\.0\.group_norm", f"{part}/middle/norm"),
            *norm(part + r"\.conv_norm_out", f"{part}/norm_out"),
            *linear(part + r"\.conv_out", f"{part}/conv_out", CONV),
        ]
        attention, ours = part + r"\.mid_block\.attentions\.0\.", f"{part}/middle/attention/"
        for name in "qkv":
            rows += into_heads(rf"{attention}to_{name}", ours + name, 1)
        rows += linear(attention + r"to_out\.0", ours + "out", join_heads(1))
    return rows


def _resnet(official: str, ours: str) -> list[Row]:
    return [
        *norm(official + r"\.norm1", f"{ours}/norm1"),
        *linear(official + r"\.conv1", f"{ours}/conv1", CONV),
        *linear(official + r"\.time_emb_proj", f"{ours}/time"),
        *norm(official + r"\.norm2", f"{ours}/norm2"),
        *linear(official + r"\.conv2", f"{ours}/conv2", CONV),
        *linear(official + r"\.conv_shortcut", f"{ours}/shortcut", POINTWISE),
    ]


def _transformer(official: str, ours: str, heads: int) -> list[Row]:
    """Queries, keys and values have no bias; the projections around the block are 1x1 convolutions."""
    block, inner = official + r"\.transformer_blocks\.0\.", f"{ours}/block/"
    rows = [
        *norm(official + r"\.norm", f"{ours}/norm"),
        *linear(official + r"\.proj_in", f"{ours}/proj_in", POINTWISE),
        *linear(official + r"\.proj_out", f"{ours}/proj_out", POINTWISE),
        # Both halves of the gated layer, the value first, are like two heads.
        Rule(block + r"ff\.net\.0\.proj\.weight", f"{inner}mlp/up/kernel", split_heads(2)),
        Rule(block + r"ff\.net\.0\.proj\.bias", f"{inner}mlp/up/bias", split_heads_bias(2)),
        *linear(block + r"ff\.net\.2", f"{inner}mlp/down", TRANSPOSE),
    ]
    for number in range(1, 4):
        rows += norm(rf"{block}norm{number}", f"{inner}norm{number}")
    for number, name in ((1, "attention"), (2, "cross")):
        attention, to = rf"{block}attn{number}\.", f"{inner}{name}/"
        rows += [Rule(rf"{attention}to_{x}\.weight", f"{to}{x}/kernel", split_heads(heads)) for x in "qkv"]
        rows += linear(attention + r"to_out\.0", to + "out", join_heads(heads))
    return rows
