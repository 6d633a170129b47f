# SPDX-License-Identifier: Apache-2.0
"""Rows for layers that many models have. `official` is a pattern without its last dot, `ours` a path.

Both may hold groups: a `(\\d+)` of `official` that `ours` does not mention is the index of a stacked layer.
"""

from vllm2_jax.convert import deformable
from vllm2_jax.convert.rules import Row, Rule
from vllm2_jax.convert.transforms import (
    TRANSPOSE,
    Transform,
    join_heads,
    split,
    split_heads,
    split_heads_bias,
)


def linear(official: str, ours: str, kernel: Transform = TRANSPOSE) -> list[Row]:
    """A dense layer or a convolution; `kernel` turns its weight, the bias stays as it is."""
    return [
        Rule(official + r"\.weight", f"{ours}/kernel", kernel),
        Rule(official + r"\.bias", f"{ours}/bias"),
    ]


def into_heads(official: str, ours: str, heads: int) -> list[Row]:
    """A dense layer whose output is cut into heads."""
    return [
        Rule(official + r"\.weight", f"{ours}/kernel", split_heads(heads)),
        Rule(official + r"\.bias", f"{ours}/bias", split_heads_bias(heads)),
    ]


def norm(official: str, ours: str) -> list[Row]:
    """A layer norm or group norm."""
    return [Rule(official + r"\.weight", f"{ours}/scale"), Rule(official + r"\.bias", f"{ours}/bias")]


def packed_attention(official: str, ours: str, heads: int) -> list[Row]:
    """`torch.nn.MultiheadAttention`: queries, keys and values in one projection."""
    kernels, biases = (tuple(f"{ours}/{name}/{leaf}" for name in "qkv") for leaf in ("kernel", "bias"))
    return [
        Rule(official + r"\.in_proj_weight", kernels, split(3, split_heads(heads))),
        Rule(official + r"\.in_proj_bias", biases, split(3, split_heads_bias(heads))),
        *linear(official + r"\.out_proj", f"{ours}/out", join_heads(heads)),
    ]


def deformable_attention(official: str, ours: str, heads: int, levels: int, points: int) -> list[Row]:
    """A deformable attention in the names of both detectors."""
    return [
        Rule(rf"{official}\.{row.pattern}", f"{ours}/{row.path}", row.transform)
        for row in deformable.table(heads, levels, points)
        if isinstance(row, Rule)
    ]


def mlp(official: str, ours: str) -> list[Row]:
    """A perceptron whose layers are numbered."""
    return linear(official + r"\.layers\.(\d+)", ours + "/layers/{1}")
