# SPDX-License-Identifier: Apache-2.0
"""Official names of the pose decoder, without the prefix of a bigger model, and UniPose's own.

The public UniPose checkpoint spells two gains differently, has a text encoder in place of links and
embeddings for denoising that were given up: it is what training starts from.
"""

from vllm2_jax.convert import layers, swin
from vllm2_jax.convert.rules import Alias, Ignore, Row, Rule, Table, prefixed
from vllm2_jax.convert.transforms import CONV, POINTWISE, join_heads
from vllm2_jax.decoders.unipose.config import UniPoseConfig

# Leaves that the public checkpoint does not have: they keep what they were initialised with.
NEW = ("class_encoder/", "keypoint_encoder/")

# What only the public checkpoint has.
GIVEN_UP = {
    r"clip_model\..*": "the language model and its links name classes and keypoints",
    r"(projection|projection_kpt|pos_proj|padding)(\..*)?": "turned the text encoder's output into ours",
    r"label_enc\..*": "denoising queries carry the embedding of their class instead",
}

# Of our decoder layer's norms, in their order.
NORMS = ("norm2", "catext_norm", "norm1", "norm3")


def table(config: UniPoseConfig, *, public: bool = False) -> Table:
    """Rows for every tensor of the decoder.

    Args:
      public: names of the public UniPose instead, for all leaves but `NEW`.
    """
    rows = [
        *prefixed(swin.original_table(config.backbone), "backbone.0.", "backbone/"),
        *_levels(config),
        *_encoder(config, gain="gamma" if public else "gam"),
        *layers.linear(r"transformer\.enc_output", "selection/project"),
        *layers.norm(r"transformer\.enc_output_norm", "selection/norm"),
        *layers.mlp(r"transformer\.enc_out_bbox_embed", "selection/box_head"),
        Rule(r"transformer\.tgt_embed\.weight", "queries"),
        *_decoder(config),
        *_heads(config),
    ]
    if public:
        return [*rows, *(Ignore(pattern, reason) for pattern, reason in GIVEN_UP.items())]
    return [
        *rows,
        *layers.mlp("projection_llava", "class_encoder/mlp"),
        *layers.mlp("projection_kpt_llava", "keypoint_encoder/mlp"),
    ]


def _levels(config: UniPoseConfig) -> list[Row]:
    last = config.levels - 1
    return [
        *layers.linear(rf"input_proj\.([0-{last - 1}])\.0", "levels/projections/{1}", POINTWISE),
        *layers.linear(rf"input_proj\.{last}\.0", "levels/extra", CONV),
        *layers.norm(r"input_proj\.(\d+)\.1", "levels/norms/{1}"),
        Rule(r"transformer\.level_embed", "levels/level"),
    ]


def _encoder(config: UniPoseConfig, *, gain: str) -> list[Row]:
    half = config.heads // 2
    fusion, classes, cells = (
        rf"transformer\.encoder\.{name}\.(\d+)" for name in ("fusion_layers", "text_layers", "layers")
    )
    rows: list[Row] = []
    for kind, letter in (("cell", "v"), ("class", "l")):
        ours = f"encoder/layers/fusion/{kind}"
        rows += [
            *layers.norm(rf"{fusion}\.layer_norm_{letter}", f"{ours}_norm"),
            Rule(rf"{fusion}\.{gain}_{letter}", f"{ours}_gain"),
            *layers.into_heads(rf"{fusion}\.attn\.{letter}_proj", f"{ours}_key", half),
            *layers.into_heads(rf"{fusion}\.attn\.values_{letter}_proj", f"{ours}_value", half),
            *layers.linear(rf"{fusion}\.attn\.out_{letter}_proj", f"{ours}_out", join_heads(half)),
        ]
    for official, kind in ((classes, "classes"), (cells, "cells")):
        rows += _feed_forward(official, f"encoder/layers/{kind}")
        for number in (1, 2):
            rows += layers.norm(rf"{official}\.norm{number}", f"encoder/layers/{kind}/norm{number}")
    return [
        *rows,
        *layers.packed_attention(rf"{classes}\.self_attn", "encoder/layers/classes/attention", half),
        *layers.deformable_attention(
            rf"{cells}\.self_attn",
            "encoder/layers/cells/attention",
            config.heads,
            config.levels,
            config.points,
        ),
    ]


def _decoder(config: UniPoseConfig) -> list[Row]:
    layer, ours = r"transformer\.decoder\.layers\.(\d+)", "decoder/layers"
    rows = _feed_forward(layer, ours)
    for number, official in enumerate(NORMS):
        rows += layers.norm(rf"{layer}\.{official}", f"{ours}/norm{number + 1}")
    return [
        *rows,
        *layers.packed_attention(rf"{layer}\.self_attn", f"{ours}/to_queries", config.heads),
        *layers.packed_attention(rf"{layer}\.ca_text", f"{ours}/to_classes", config.heads),
        *layers.deformable_attention(
            rf"{layer}\.cross_attn", f"{ours}/to_cells", config.heads, config.levels, config.points
        ),
        *layers.norm(r"transformer\.decoder\.norm", "decoder/norm"),
        *layers.mlp(r"transformer\.decoder\.ref_point_head", "decoder/position"),
        Rule(r"transformer\.decoder\.hw\.weight", "decoder/body"),
        Rule(r"transformer\.decoder\.hw_append\.weight", "decoder/other"),
    ]


def _heads(config: UniPoseConfig) -> list[Row]:
    """One head each, listed once a layer that uses it, in the decoder and again outside of it."""
    rows: list[Row] = []
    for official, ours, copies in (
        ("bbox_embed", "box", config.box_layers + config.keypoint_layers),
        ("pose_embed", "point", config.keypoint_layers + 1),
        ("pose_hw_embed", "extent", config.keypoint_layers),
    ):
        first = f"transformer.decoder.{official}.0"
        rows += [
            *layers.mlp(rf"transformer\.decoder\.{official}\.0", f"decoder/heads/{ours}"),
            Alias(rf"transformer\.decoder\.{official}\.([1-9]\d*)\.(.*)", first + ".{2}", range(1, copies)),
            Alias(rf"{official}\.(\d+)\.(.*)", first + ".{2}", range(copies)),
        ]
    return rows


def _feed_forward(official: str, ours: str) -> list[Row]:
    return [
        row
        for number in (1, 2)
        for row in layers.linear(rf"{official}\.linear{number}", f"{ours}/mlp/layers/{number - 1}")
    ]
