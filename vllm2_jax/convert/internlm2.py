# SPDX-License-Identifier: Apache-2.0
"""Official names of InternLM2 (`InternLM2ForCausalLM`), without the prefix of a bigger model."""

import numpy as np

from vllm2_jax.convert import lora
from vllm2_jax.convert.rules import ConversionError, Rule, Table
from vllm2_jax.convert.transforms import TRANSPOSE, Transform, join_heads
from vllm2_jax.llm.llama import LlamaConfig

MLP = {"w1": "gate", "w3": "up", "w2": "down"}


def table(config: LlamaConfig) -> Table:
    """Rows for every tensor of the language model; adapters by the names of `lora.plain_names`."""
    layer = r"model\.layers\.(\d+)\."
    kernels = tuple(f"layers/attention/{name}/kernel" for name in "qkv")
    biases = tuple(f"layers/attention/{name}/bias" for name in "qkv")
    rows = [
        Rule(r"model\.tok_embeddings\.weight", "embed"),
        Rule(r"model\.norm\.weight", "norm/scale"),
        Rule(r"output\.weight", "head", TRANSPOSE),
        Rule(layer + r"attention_norm\.weight", "layers/input_norm/scale"),
        Rule(layer + r"ffn_norm\.weight", "layers/post_norm/scale"),
        Rule(layer + r"attention\.wqkv\.weight", kernels, split_groups(config)),
        Rule(layer + r"attention\.wqkv\.bias", biases, split_groups_bias(config)),
        Rule(layer + r"attention\.wo\.weight", "layers/attention/out/kernel", join_heads(config.heads)),
        Rule(layer + r"attention\.wo\.bias", "layers/attention/out/bias"),
    ]
    for name, ours in MLP.items():
        rows.append(Rule(layer + rf"feed_forward\.{name}\.weight", f"layers/mlp/{ours}/kernel", TRANSPOSE))
    official = {ours: layer + rf"feed_forward\.{name}" for name, ours in MLP.items()}
    official |= {"out": layer + r"attention\.wo"}
    return rows + lora.rows(config, official) + fused_adapter(config, layer + r"attention\.wqkv")


def fused_adapter(config: LlamaConfig, official: str) -> list[Rule]:
    """Rows for the one adapter of `wqkv`, which becomes three with the same A."""
    adapted = [name for name in "qkv" if config.lora is not None and config.lora.adapts(name)]
    if not adapted:
        return []
    if len(adapted) < 3:
        raise ConversionError(
            f"InternLM2 has one adapter for q, k and v, this config only for {', '.join(adapted)}; "
            "let the LoRA targets match all three or none"
        )
    a, b = (tuple(f"layers/attention/{name}/lora/{leaf}" for name in "qkv") for leaf in "ab")
    return [
        Rule(official + r"\.lora_A\.weight", a, lora.shared(3)),
        Rule(official + r"\.lora_B\.weight", b, split_groups(config)),
    ]


def split_groups_bias(config: LlamaConfig) -> Transform:
    """Rows of q, k and v, [all heads * d] -> [heads, d], [kv_heads, d], [kv_heads, d].

    The official rows stand group by group: the queries that share one key head, that key head, its value head
    (core of `InternLM2Attention.forward`).
    """
    groups, d = config.kv_heads, config.head_dim

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x.reshape(groups, -1, d)
        return x[:, :-2].reshape(-1, d), x[:, -2], x[:, -1]

    def inverse(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        parts = [q.reshape(groups, -1, d), k[:, None], v[:, None]]
        return np.concatenate(parts, axis=1).reshape(-1)

    return Transform(forward, inverse)


def split_groups(config: LlamaConfig) -> Transform:
    """The same for the weights, [all heads * d, in] -> three times [in, heads, d]."""
    groups, d = config.kv_heads, config.head_dim

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x.reshape(groups, -1, d, x.shape[-1])
        heads = x[:, :-2].reshape(-1, d, x.shape[-1]), x[:, -2], x[:, -1]
        return tuple(part.transpose(2, 0, 1) for part in heads)

    def inverse(*leaves: np.ndarray) -> np.ndarray:
        q, k, v = (leaf.transpose(1, 2, 0) for leaf in leaves)
        parts = [q.reshape(groups, -1, d, q.shape[-1]), k[:, None], v[:, None]]
        return np.concatenate(parts, axis=1).reshape(-1, q.shape[-1])

    return Transform(forward, inverse)
