# SPDX-License-Identifier: Apache-2.0
"""Official names of the grounding decoder, without the prefix of a bigger model, and Grounding DINO's own.

VisionLLM v2 stores an attention's projections as one `in_proj` and lists shared heads once a layer. The
public checkpoint (transformers' `GroundingDinoForObjectDetection`) stores them apart, has a text backbone in
place of links, and no masks: it is what training starts from.
"""

from vllm2_jax.convert import layers, swin
from vllm2_jax.convert.rules import Alias, Ignore, Row, Rule, Table, prefixed
from vllm2_jax.convert.transforms import CONV, POINTWISE, join_heads
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig

BACKBONE = "model.backbone.conv_encoder.model."

# Leaves that the public checkpoint does not have: they keep what they were initialised with.
NEW = ("class_encoder/", "mask_features/", "query_masks/", "mask_head/", "backbone/stages/0/norm/")


def table(config: GroundingDINOConfig, *, public: bool = False, packed: bool | None = None) -> Table:
    """Rows for every tensor of the decoder.

    Args:
      public: names of the public Grounding DINO instead, for all leaves but `NEW`.
      packed: whether queries, keys and values of an attention are one `in_proj`; by default not in the public
        checkpoint (an early one has it, which the official training started from).
    """
    packed = not public if packed is None else packed
    rows = [
        *prefixed(swin.transformers_table(config.backbone), BACKBONE, "backbone/"),
        *_levels(config),
        *_encoder(config, packed),
        *_selection(),
        *_decoder(config, packed),
    ]
    if public:
        return [
            *rows,
            Ignore(r"model\.text_backbone\..*", "the language model and its links take its place"),
            Ignore(r"model\.text_projection\..*", "links have a perceptron of their own"),
        ]
    return [*rows, *layers.mlp("patch2query", "class_encoder/mlp"), *_masks(config)]


def _levels(config: GroundingDINOConfig) -> list[Row]:
    extra = layers.linear(r"model\.input_proj_vision\.3\.0", "levels/extra", CONV)
    return [
        *layers.linear(r"model\.input_proj_vision\.([0-2])\.0", "levels/projections/{1}", POINTWISE),
        *(extra if config.levels > 3 else []),
        *layers.norm(r"model\.input_proj_vision\.(\d+)\.1", "levels/norms/{1}"),
        Rule(r"model\.level_embed", "levels/level"),
    ]


def _encoder(config: GroundingDINOConfig, packed: bool) -> list[Row]:
    half, ours = config.encoder_heads // 2, "encoder/layers"
    fusion, classes, cells = (
        rf"model\.encoder\.layers\.(\d+)\.{name}"
        for name in ("fusion_layer", "text_enhancer_layer", "deformable_layer")
    )
    rows: list[Row] = []
    for kind, official in (("cell", "vision"), ("class", "text")):
        mine = f"{ours}/fusion/{kind}"
        rows += [
            *layers.norm(rf"{fusion}\.layer_norm_{official}", f"{mine}_norm"),
            Rule(rf"{fusion}\.{official}_param", f"{mine}_gain"),
            *layers.into_heads(rf"{fusion}\.attn\.{official}_proj", f"{mine}_key", half),
            *layers.into_heads(rf"{fusion}\.attn\.values_{official}_proj", f"{mine}_value", half),
            *layers.linear(rf"{fusion}\.attn\.out_{official}_proj", f"{mine}_out", join_heads(half)),
        ]
    return [
        *rows,
        *_attention(rf"{classes}\.self_attn", f"{ours}/classes/attention", half, packed),
        *layers.norm(rf"{classes}\.layer_norm_before", f"{ours}/classes/norm1"),
        *layers.norm(rf"{classes}\.layer_norm_after", f"{ours}/classes/norm2"),
        *_feed_forward(classes, f"{ours}/classes"),
        *layers.deformable_attention(
            rf"{cells}\.self_attn",
            f"{ours}/cells/attention",
            config.encoder_heads,
            config.levels,
            config.encoder_points,
        ),
        *layers.norm(rf"{cells}\.self_attn_layer_norm", f"{ours}/cells/norm1"),
        *layers.norm(rf"{cells}\.final_layer_norm", f"{ours}/cells/norm2"),
        *_feed_forward(cells, f"{ours}/cells"),
    ]


def _selection() -> list[Row]:
    return [
        *layers.linear(r"model\.enc_output", "selection/project"),
        *layers.norm(r"model\.enc_output_norm", "selection/norm"),
        *layers.mlp(r"model\.encoder_output_bbox_embed", "selection/box_head"),
        Rule(r"model\.query_position_embeddings\.weight", "queries"),
    ]


def _decoder(config: GroundingDINOConfig, packed: bool) -> list[Row]:
    heads, depth = config.decoder_heads, config.decoder_layers
    layer, ours = r"model\.decoder\.layers\.(\d+)", "decoder/layers"
    rows: list[Row] = []
    for number, name in enumerate(("self_attn", "encoder_attn_text", "encoder_attn", "final")):
        rows += layers.norm(rf"{layer}\.{name}_layer_norm", f"{ours}/norm{number + 1}")
    return [
        *rows,
        *_attention(rf"{layer}\.self_attn", f"{ours}/to_queries", heads, packed),
        *_attention(rf"{layer}\.encoder_attn_text", f"{ours}/to_classes", heads, packed),
        *layers.deformable_attention(
            rf"{layer}\.encoder_attn", f"{ours}/to_cells", heads, config.levels, config.decoder_points
        ),
        *_feed_forward(layer, ours),
        *layers.norm(r"model\.decoder\.layer_norm", "decoder/norm"),
        *layers.mlp(r"model\.decoder\.reference_points_head", "decoder/reference_head"),
        *layers.mlp(r"bbox_embed\.0", "decoder/box_head"),
        Alias(r"bbox_embed\.([1-9]\d*)\.(.*)", "bbox_embed.0.{2}", range(1, depth)),
        Alias(r"model\.decoder\.bbox_embed\.(\d+)\.(.*)", "bbox_embed.0.{2}", range(depth)),
    ]


def _masks(config: GroundingDINOConfig) -> list[Row]:
    return [
        Rule(r"model\.lateral_convs\.0\.weight", "mask_features/lateral/kernel", POINTWISE),
        *layers.norm(r"model\.lateral_convs\.0\.norm", "mask_features/lateral_norm"),
        Rule(r"model\.output_convs\.0\.weight", "mask_features/conv/kernel", CONV),
        *layers.norm(r"model\.output_convs\.0\.norm", "mask_features/conv_norm"),
        *layers.linear(r"model\.mask_features", "mask_features/out", POINTWISE),
        *layers.mlp(r"model\.mask_embed", "query_masks"),
        *layers.mlp(r"mask_embed\.0", "mask_head"),
        Alias(r"mask_embed\.([1-9]\d*)\.(.*)", "mask_embed.0.{2}", range(1, config.decoder_layers)),
    ]


def _attention(official: str, ours: str, heads: int, packed: bool) -> list[Row]:
    """An attention between sequences, in either of its spellings."""
    if packed:
        return layers.packed_attention(official, ours, heads)
    rows = layers.linear(rf"{official}\.out_proj", f"{ours}/out", join_heads(heads))
    for long, short in (("query", "q"), ("key", "k"), ("value", "v")):
        rows += layers.into_heads(rf"{official}\.{long}", f"{ours}/{short}", heads)
    return rows


def _feed_forward(official: str, ours: str) -> list[Row]:
    return [
        row
        for number in (1, 2)
        for row in layers.linear(rf"{official}\.fc{number}", f"{ours}/mlp/layers/{number - 1}")
    ]
