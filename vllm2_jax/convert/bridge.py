# SPDX-License-Identifier: Apache-2.0
"""Official names of the bridge (`vl_bridge`), without that prefix."""

from vllm2_jax.convert.rules import Rule, Table
from vllm2_jax.convert.transforms import TRANSPOSE
from vllm2_jax.vision.bridge import BridgeConfig


def table(config: BridgeConfig) -> Table:
    """Rows for the tensors of this kind of bridge; a `Sequential` counts its activations too."""
    if config.kind == "linear":
        return [Rule("weight", "layers/0/kernel", TRANSPOSE), Rule("bias", "layers/0/bias")]
    rows = []
    first = 0
    if config.kind == "internvl_mlp":
        rows, first = [Rule(r"0\.weight", "norm/scale"), Rule(r"0\.bias", "norm/bias")], 1
    for i in range(config.depth):
        rows.append(Rule(rf"{first + 2 * i}\.weight", f"layers/{i}/kernel", TRANSPOSE))
        rows.append(Rule(rf"{first + 2 * i}\.bias", f"layers/{i}/bias"))
    return rows
