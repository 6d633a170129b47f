# SPDX-License-Identifier: Apache-2.0
"""Official names of CLIP's encoders (`CLIPVisionModel`, `CLIPTextModel`), without a bigger model's prefix."""

from vllm2_jax.convert.rules import Ignore, Row, Rule, Table
from vllm2_jax.convert.transforms import CONV, TRANSPOSE, join_heads, split_heads, split_heads_bias
from vllm2_jax.vision.clip import CLIPConfig


def table(config: CLIPConfig) -> Table:
    """Rows for every tensor of the image encoder."""
    return [
        Rule(r"vision_model\.embeddings\.class_embedding", "class_token"),
        Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "patches/kernel", CONV),
        Rule(r"vision_model\.embeddings\.position_embedding\.weight", "positions"),
        Rule(r"vision_model\.pre_layrnorm\.weight", "pre_norm/scale"),  # the official spelling
        Rule(r"vision_model\.pre_layrnorm\.bias", "pre_norm/bias"),
        Rule(r"vision_model\.post_layernorm\.weight", "post_norm/scale"),
        Rule(r"vision_model\.post_layernorm\.bias", "post_norm/bias"),
        *_blocks(r"vision_model\.", config.heads),
    ]


def text_table(heads: int) -> Table:
    """Rows for every tensor of a text encoder with so many heads."""
    return [
        Rule(r"text_model\.embeddings\.token_embedding\.weight", "tokens"),
        Rule(r"text_model\.embeddings\.position_embedding\.weight", "positions"),
        Rule(r"text_model\.final_layer_norm\.weight", "norm/scale"),
        Rule(r"text_model\.final_layer_norm\.bias", "norm/bias"),
        *_blocks(r"text_model\.", heads),
    ]


def _blocks(model: str, heads: int) -> list[Row]:
    """What both encoders have alike."""
    layer = model + r"encoder\.layers\.(\d+)\."
    rows: list[Row] = [
        Rule(layer + r"self_attn\.(q|k|v)_proj\.weight", "blocks/attention/{2}/kernel", split_heads(heads)),
        Rule(layer + r"self_attn\.(q|k|v)_proj\.bias", "blocks/attention/{2}/bias", split_heads_bias(heads)),
        Rule(layer + r"self_attn\.out_proj\.weight", "blocks/attention/out/kernel", join_heads(heads)),
        Rule(layer + r"self_attn\.out_proj\.bias", "blocks/attention/out/bias"),
        Ignore(model + r"embeddings\.position_ids", "a buffer of older writers: 0, 1, 2, ..."),
    ]
    for official, ours in (("layer_norm1", "norm1"), ("layer_norm2", "norm2")):
        rows.append(Rule(layer + official + r"\.weight", f"blocks/{ours}/scale"))
        rows.append(Rule(layer + official + r"\.bias", f"blocks/{ours}/bias"))
    for official, ours in (("fc1", "up"), ("fc2", "down")):
        rows.append(Rule(layer + rf"mlp\.{official}\.weight", f"blocks/mlp/{ours}/kernel", TRANSPOSE))
        rows.append(Rule(layer + rf"mlp\.{official}\.bias", f"blocks/mlp/{ours}/bias"))
    return rows
