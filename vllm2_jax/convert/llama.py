# SPDX-License-Identifier: Apache-2.0
"""Official names of Llama and Vicuna (`LlamaForCausalLM`), without the prefix of a bigger model."""

from vllm2_jax.convert import lora
from vllm2_jax.convert.rules import Ignore, Row, Rule, Table
from vllm2_jax.convert.transforms import TRANSPOSE, join_heads, split_heads, split_heads_bias
from vllm2_jax.llm.llama import LlamaConfig


def table(config: LlamaConfig) -> Table:
    """Rows for every tensor of the language model; adapters by the names of `lora.plain_names`."""
    layer, attention = r"model\.layers\.(\d+)\.", "layers/attention"
    rows: list[Row] = [
        Rule(r"model\.embed_tokens\.weight", "embed"),
        Rule(r"model\.norm\.weight", "norm/scale"),
        Rule(r"lm_head\.weight", "head", TRANSPOSE),
        Rule(layer + r"input_layernorm\.weight", "layers/input_norm/scale"),
        Rule(layer + r"post_attention_layernorm\.weight", "layers/post_norm/scale"),
        Rule(layer + r"self_attn\.o_proj\.weight", f"{attention}/out/kernel", join_heads(config.heads)),
        Rule(layer + r"self_attn\.o_proj\.bias", f"{attention}/out/bias"),
        Rule(layer + r"mlp\.(gate|up|down)_proj\.weight", "layers/mlp/{2}/kernel", TRANSPOSE),
        Ignore(
            r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
            "a buffer of older writers that follows from the config",
        ),
    ]
    for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
        official, ours = layer + rf"self_attn\.{name}_proj\.", f"{attention}/{name}"
        rows.append(Rule(official + "weight", f"{ours}/kernel", split_heads(heads)))
        rows.append(Rule(official + "bias", f"{ours}/bias", split_heads_bias(heads)))
    projections = {name: layer + rf"self_attn\.{name}_proj" for name in "qkv"}
    projections |= {"out": layer + r"self_attn\.o_proj"}
    projections |= {name: layer + rf"mlp\.{name}_proj" for name in ("gate", "up", "down")}
    return rows + lora.rows(config, projections)
