# SPDX-License-Identifier: Apache-2.0
"""Official names inside one deformable attention; both detectors use the same ones."""

from vllm2_jax.convert.rules import Rule, Table
from vllm2_jax.convert.transforms import (
    join_heads,
    split_axes,
    split_axes_bias,
    split_heads,
    split_heads_bias,
)


def table(heads: int, levels: int, points: int) -> Table:
    """Rows for `value_proj`, `sampling_offsets`, `attention_weights` and `output_proj`."""
    offsets, weights = (heads, levels, points, 2), (heads, levels, points)
    return [
        Rule(r"value_proj\.weight", "value/kernel", split_heads(heads)),
        Rule(r"value_proj\.bias", "value/bias", split_heads_bias(heads)),
        Rule(r"sampling_offsets\.weight", "offsets/kernel", split_axes(*offsets)),
        Rule(r"sampling_offsets\.bias", "offsets/bias", split_axes_bias(*offsets)),
        Rule(r"attention_weights\.weight", "weights/kernel", split_axes(*weights)),
        Rule(r"attention_weights\.bias", "weights/bias", split_axes_bias(*weights)),
        Rule(r"output_proj\.weight", "out/kernel", join_heads(heads)),
        Rule(r"output_proj\.bias", "out/bias"),
    ]
