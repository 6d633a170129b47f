# SPDX-License-Identifier: Apache-2.0
"""Official names of CLIP's image encoder (`CLIPVisionModel`), without the prefix of a bigger model."""

from vllm2_jax.convert.rules import Ignore, Row, Rule, Table
from vllm2_jax.convert.transforms import CONV, TRANSPOSE, join_heads, split_heads, split_heads_bias
from vllm2_jax.vision.clip import CLIPConfig


def table(config: CLIPConfig) -> Table:
    """Rows for every tensor of the tower."""
    layer = r"vision_model\.encoder\.layers\.(\d+)\."
    rows: list[Row] = [
        Rule(r"vision_model\.embeddings\.class_embedding", "class_token"),
        Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "patches/kernel", CONV),
        Rule(r"vision_model\.embeddings\.position_embedding\.weight", "positions"),
        Rule(r"vision_model\.pre_layrnorm\.weight", "pre_norm/scale"),  # the official spelling
        Rule(r"vision_model\.pre_layrnorm\.bias", "pre_norm/bias"),
        Rule(r"vision_model\.post_layernorm\.weight", "post_norm/scale"),
        Rule(r"vision_model\.post_layernorm\.bias", "post_norm/bias"),
        Rule(
            layer + r"self_attn\.(q|k|v)_proj\.weight",
            "blocks/attention/{2}/kernel",
            split_heads(config.heads),
        ),
        Rule(
            layer + r"self_attn\.(q|k|v)_proj\.bias",
            "blocks/attention/{2}/bias",
            split_heads_bias(config.heads),
        ),
        Rule(layer + r"self_attn\.out_proj\.weight", "blocks/attention/out/kernel", join_heads(config.heads)),
        Rule(layer + r"self_attn\.out_proj\.bias", "blocks/attention/out/bias"),
        Ignore(r"vision_model\.embeddings\.position_ids", "a buffer of older writers: 0, 1, 2, ..."),
    ]
    for official, ours in (("layer_norm1", "norm1"), ("layer_norm2", "norm2")):
        rows.append(Rule(layer + official + r"\.weight", f"blocks/{ours}/scale"))
        rows.append(Rule(layer + official + r"\.bias", f"blocks/{ours}/bias"))
    for official, ours in (("fc1", "up"), ("fc2", "down")):
        rows.append(Rule(layer + rf"mlp\.{official}\.weight", f"blocks/mlp/{ours}/kernel", TRANSPOSE))
        rows.append(Rule(layer + rf"mlp\.{official}\.bias", f"blocks/mlp/{ours}/bias"))
    return rows
