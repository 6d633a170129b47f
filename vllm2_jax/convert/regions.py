# SPDX-License-Identifier: Apache-2.0
"""Official names of the region encoder (`region_encoder`), without that prefix."""

from vllm2_jax.convert import layers
from vllm2_jax.convert.rules import Rule, Table
from vllm2_jax.convert.transforms import CONV, POINTWISE, squeeze
from vllm2_jax.vision.region_query import HEADS
from vllm2_jax.vision.regions import RegionConfig


def table(config: RegionConfig) -> Table:
    """Rows for every tensor of the region encoder with this pooling."""
    rows = [
        *layers.linear(r"mask_embedding\.0", "mask_embedding/conv1", CONV),
        *layers.norm(r"mask_embedding\.1", "mask_embedding/norm1"),
        *layers.linear(r"mask_embedding\.3", "mask_embedding/conv2", CONV),
        *layers.norm(r"mask_embedding\.4", "mask_embedding/norm2"),
        *layers.linear(r"mask_embedding\.6", "mask_embedding/out", POINTWISE),
        *layers.linear(r"up_dim", "out"),
    ]
    if config.pooling == "cross_attn":
        rows.append(Rule(r"region_query\.weight", "query/query", squeeze(1)))
        rows += layers.packed_attention("region_attn", "query", HEADS)
    return rows
