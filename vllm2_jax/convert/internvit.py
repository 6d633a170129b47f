# SPDX-License-Identifier: Apache-2.0
"""Official names of InternViT, without the prefix of a bigger model."""

import jax.numpy as jnp
import numpy as np

from vllm2_jax.convert.rules import Rule, Table
from vllm2_jax.convert.transforms import (
    CONV,
    TRANSPOSE,
    Transform,
    chain,
    join_heads,
    split,
    split_heads,
    split_heads_bias,
    squeeze,
)
from vllm2_jax.vision.internvit import InternViTConfig
from vllm2_jax.vision.positions import resize_positions


def table(config: InternViTConfig, *, stored_image_size: int | None = None) -> Table:
    """Rows for every tensor of the tower.

    Args:
      stored_image_size: size that the checkpoint's position table stands for, if not the model's: the table
        is then interpolated, and such a model cannot be exported.
    """
    layer = r"encoder\.layers\.(\d+)\."
    heads, leaves = config.heads, "blocks/attention"
    positions = squeeze(1)
    if stored_image_size not in (None, config.image_size):
        positions = chain(positions, _resized(config))
    rows = [
        Rule(r"embeddings\.class_embedding", "class_token", squeeze(2)),
        Rule(r"embeddings\.patch_embedding\.weight", "patches/kernel", CONV),
        Rule(r"embeddings\.patch_embedding\.bias", "patches/bias"),
        Rule(r"embeddings\.position_embedding", "positions", positions),
        Rule(layer + r"norm(1|2)\.weight", "blocks/norm{2}/scale"),
        Rule(layer + r"ls(1|2)", "blocks/scale{2}"),
        Rule(
            layer + r"attn\.qkv\.weight",
            tuple(f"{leaves}/{name}/kernel" for name in "qkv"),
            split(3, split_heads(heads)),
        ),
        Rule(
            layer + r"attn\.qkv\.bias",
            tuple(f"{leaves}/{name}/bias" for name in "qkv"),
            split(3, split_heads_bias(heads)),
        ),
        Rule(layer + r"attn\.(q|k)_norm\.weight", leaves + "/{2}_norm/scale"),
        Rule(layer + r"attn\.proj\.weight", f"{leaves}/out/kernel", join_heads(heads)),
        Rule(layer + r"attn\.proj\.bias", f"{leaves}/out/bias"),
    ]
    for official, ours in (("fc1", "up"), ("fc2", "down")):
        rows.append(Rule(layer + rf"mlp\.{official}\.weight", f"blocks/mlp/{ours}/kernel", TRANSPOSE))
        rows.append(Rule(layer + rf"mlp\.{official}\.bias", f"blocks/mlp/{ours}/bias"))
    return rows


def _resized(config: InternViTConfig) -> Transform:
    grid = config.image_size // config.patch

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(resize_positions(jnp.asarray(x, jnp.float32), grid))

    def inverse(x: np.ndarray) -> np.ndarray:
        raise ValueError(
            "an interpolated position table cannot be turned back; export with the table of its size"
        )

    return Transform(forward, inverse)
