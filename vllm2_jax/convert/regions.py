# SPDX-License-Identifier: Apache-2.0
"""Official names of the region encoder (`region_encoder`), without that prefix."""

from vllm2_jax.convert.rules import Rule, Table
from vllm2_jax.convert.transforms import (
    CONV,
    POINTWISE,
    TRANSPOSE,
    join_heads,
    split,
    split_heads,
    split_heads_bias,
    squeeze,
)
from vllm2_jax.vision.region_query import HEADS
from vllm2_jax.vision.regions import RegionConfig


def table(config: RegionConfig) -> Table:
    """Rows for every tensor of the region encoder with this pooling."""
    rows = [
        Rule(r"mask_embedding\.0\.weight", "mask_embedding/conv1/kernel", CONV),
        Rule(r"mask_embedding\.0\.bias", "mask_embedding/conv1/bias"),
        Rule(r"mask_embedding\.1\.weight", "mask_embedding/norm1/scale"),
        Rule(r"mask_embedding\.1\.bias", "mask_embedding/norm1/bias"),
        Rule(r"mask_embedding\.3\.weight", "mask_embedding/conv2/kernel", CONV),
        Rule(r"mask_embedding\.3\.bias", "mask_embedding/conv2/bias"),
        Rule(r"mask_embedding\.4\.weight", "mask_embedding/norm2/scale"),
        Rule(r"mask_embedding\.4\.bias", "mask_embedding/norm2/bias"),
        Rule(r"mask_embedding\.6\.weight", "mask_embedding/out/kernel", POINTWISE),
        Rule(r"mask_embedding\.6\.bias", "mask_embedding/out/bias"),
        Rule(r"up_dim\.weight", "out/kernel", TRANSPOSE),
        Rule(r"up_dim\.bias", "out/bias"),
    ]
    if config.pooling == "cross_attn":
        kernels, biases = (tuple(f"query/{x}/{kind}" for x in "qkv") for kind in ("kernel", "bias"))
        rows += [
            Rule(r"region_query\.weight", "query/query", squeeze(1)),
            Rule(r"region_attn\.in_proj_weight", kernels, split(3, split_heads(HEADS))),
            Rule(r"region_attn\.in_proj_bias", biases, split(3, split_heads_bias(HEADS))),
            Rule(r"region_attn\.out_proj\.weight", "query/out/kernel", join_heads(HEADS)),
            Rule(r"region_attn\.out_proj\.bias", "query/out/bias"),
        ]
    return rows
