# SPDX-License-Identifier: Apache-2.0
"""Official names of Swin in its two spellings, without the prefix of a bigger model."""

from vllm2_jax.convert import layers
from vllm2_jax.convert.rules import Buffer, Row, Rule, Table
from vllm2_jax.convert.transforms import CONV, TRANSPOSE, join_heads, split, split_heads, split_heads_bias
from vllm2_jax.vision.swin import SwinConfig, distances


def transformers_table(config: SwinConfig) -> Table:
    """Rows for `SwinBackbone` of transformers: Grounding DINO's `model.backbone.conv_encoder.model.`."""
    rows: list[Row] = [
        *layers.linear(r"embeddings\.patch_embeddings\.projection", "patches", CONV),
        *layers.norm(r"embeddings\.norm", "norm"),
        *_indices(config, "encoder.layers.{}.blocks.{}.attention.self"),
    ]
    for stage, heads in enumerate(config.heads):
        block, ours = rf"encoder\.layers\.{stage}\.blocks\.(\d+)\.", f"stages/{stage}/blocks/{{1}}/"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            rows += layers.into_heads(rf"{block}attention\.self\.{name}", f"{ours}attention/{short}", heads)
        table = block + r"attention\.self\.relative_position_bias_table"
        rows += _block(
            block,
            ours,
            heads,
            norms=("layernorm_before", "layernorm_after"),
            out=r"attention\.output\.dense",
            mlp=(r"intermediate\.dense", r"output\.dense"),
        )
        rows.append(Rule(table, f"{ours}attention/bias"))
        # The official merging belongs to the end of the stage before.
        rows += _merge(rf"encoder\.layers\.{stage - 1}\.downsample", stage) if stage else []
        if stage in config.stages:
            rows += layers.norm(rf"hidden_states_norms\.stage{stage + 1}", f"stages/{stage}/norm")
    return rows


def original_table(config: SwinConfig) -> Table:
    """Rows for the original `SwinTransformer`: UniPose's `backbone.0.`."""
    rows: list[Row] = [
        *layers.linear(r"patch_embed\.proj", "patches", CONV),
        *layers.norm(r"patch_embed\.norm", "norm"),
        *_indices(config, "layers.{}.blocks.{}.attn"),
    ]
    for stage, heads in enumerate(config.heads):
        block, ours = rf"layers\.{stage}\.blocks\.(\d+)\.", f"stages/{stage}/blocks/{{1}}/"
        for part, each in (("weight", split_heads(heads)), ("bias", split_heads_bias(heads))):
            leaf = "kernel" if part == "weight" else "bias"
            paths = tuple(f"{ours}attention/{short}/{leaf}" for short in "qkv")
            rows.append(Rule(rf"{block}attn\.qkv\.{part}", paths, split(3, each)))
        rows.append(Rule(block + r"attn\.relative_position_bias_table", f"{ours}attention/bias"))
        rows += _block(
            block,
            ours,
            heads,
            norms=("norm1", "norm2"),
            out=r"attn\.proj",
            mlp=(r"mlp\.fc1", r"mlp\.fc2"),
        )
        rows += _merge(rf"layers\.{stage - 1}\.downsample", stage) if stage else []
        if stage in config.stages:
            rows += layers.norm(rf"norm{stage}", f"stages/{stage}/norm")
    return rows


def _indices(config: SwinConfig, attention: str) -> list[Row]:
    """Which row of the bias table each pair of cells takes; all blocks have the same."""
    return [
        Buffer(f"{attention.format(stage, block)}.relative_position_index", lambda: distances(config.window))
        for stage, depth in enumerate(config.depths)
        for block in range(depth)
    ]


def _block(
    block: str, ours: str, heads: int, *, norms: tuple[str, str], out: str, mlp: tuple[str, str]
) -> list[Row]:
    """What both spellings have alike in a block: norms, output projection and feed-forward."""
    rows = [row for i, norm in enumerate(norms) for row in layers.norm(block + norm, f"{ours}norm{i + 1}")]
    rows += layers.linear(block + out, f"{ours}attention/out", join_heads(heads))
    for official, layer in zip(mlp, ("up", "down"), strict=True):
        rows += layers.linear(block + official, f"{ours}mlp/{layer}")
    return rows


def _merge(official: str, stage: int) -> list[Row]:
    return [
        *layers.norm(official + r"\.norm", f"stages/{stage}/merge_norm"),
        Rule(official + r"\.reduction\.weight", f"stages/{stage}/merge/kernel", TRANSPOSE),
    ]
