# SPDX-License-Identifier: Apache-2.0
"""Weight tables of the language models: every leaf there and back, peft's names, InternLM2's packing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.llm import small
from vllm2_jax.convert import internlm2, llama, lora
from vllm2_jax.convert.rules import ConversionError, export, load
from vllm2_jax.llm.llama import Llama, LlamaConfig
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.nn.rngs import Rngs

ADAPTED = dataclasses.replace(small.CONFIG, lora=LoRAConfig(rank=3))


def abstract(config: LlamaConfig) -> Llama:
    return jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=Rngs(0)))


def assert_same(a: Llama, b: Llama):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("config", [small.CONFIG, ADAPTED])
@pytest.mark.parametrize("table", [llama.table, internlm2.table])
def test_export_and_load_are_inverse(config, table):
    llm = small.model(config)
    if config.lora is not None and table is internlm2.table:
        a = llm.layers.attention.q.lora.a[...]
        llm.layers.attention.k.lora.a[...] = llm.layers.attention.v.lora.a[...] = a
    tensors = export(llm, table(config))
    assert_same(load(tensors, table(config), abstract(config)), llm)


def test_official_names_and_shapes_of_llama():
    tensors = export(small.model(ADAPTED), llama.table(ADAPTED))
    c = ADAPTED
    layer = "model.layers.2."
    assert tensors[layer + "self_attn.k_proj.weight"].shape == (c.kv_heads * c.head_dim, c.width)
    assert tensors[layer + "self_attn.o_proj.weight"].shape == (c.width, c.heads * c.head_dim)
    assert tensors[layer + "mlp.down_proj.weight"].shape == (c.width, c.mlp)
    assert tensors[layer + "self_attn.o_proj.lora_A.weight"].shape == (3, c.width)
    assert tensors[layer + "self_attn.k_proj.lora_B.weight"].shape == (c.kv_heads * c.head_dim, 3)
    assert not any("gate_proj.lora" in name for name in tensors)
    assert tensors["lm_head.weight"].shape == (c.vocab, c.width)


def test_internlm2_packs_each_group_of_heads():
    """Row by row: two groups of three queries, their key and their value."""
    c, llm = small.CONFIG, small.model()
    tensors = export(llm, internlm2.table(c))
    a = llm.layers.attention
    rows = tensors["model.layers.1.attention.wqkv.weight"].reshape(2, 5, c.head_dim, c.width)
    biases = tensors["model.layers.1.attention.wqkv.bias"].reshape(2, 5, c.head_dim)
    for group in range(2):
        for place in range(3):
            head = 3 * group + place
            np.testing.assert_array_equal(rows[group, place], a.q.kernel[...][1, :, head].T)
            np.testing.assert_array_equal(biases[group, place], a.q.bias[...][1, head])
        np.testing.assert_array_equal(rows[group, 3], a.k.kernel[...][1, :, group].T)
        np.testing.assert_array_equal(rows[group, 4], a.v.kernel[...][1, :, group].T)
        np.testing.assert_array_equal(biases[group, 4], a.v.bias[...][1, group])


def wrapped(name: str, base_layer: bool) -> str:
    """The name that peft 0.6 gives a tensor of a wrapped model, or 0.7 with `base_layer`."""
    name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
    targets = ("q_proj.", "k_proj.", "v_proj.", "o_proj.", "up_proj.", "down_proj.")
    if base_layer and "lora" not in name:
        for target in targets:
            name = name.replace(target, target + "base_layer.")
    return "base_model.model." + name


@pytest.mark.parametrize("base_layer", [False, True])
def test_names_of_peft(base_layer):
    llm = small.model(ADAPTED)
    tensors = export(llm, llama.table(ADAPTED))
    changed = {wrapped(name, base_layer): value for name, value in tensors.items()}
    assert not set(changed) & set(tensors)
    again = load(lora.plain_names(changed), llama.table(ADAPTED), abstract(ADAPTED))
    assert_same(again, llm)
    assert lora.plain_names(tensors).keys() == tensors.keys()


def test_what_does_not_fit_is_refused():
    llm = small.model(ADAPTED)
    tensors = export(llm, llama.table(ADAPTED))
    with pytest.raises(ConversionError, match="lora_A"):  # adapters for a model without any
        load(tensors, llama.table(small.CONFIG), abstract(small.CONFIG))
    two = {"q_proj.lora_A.default.weight": 0, "q_proj.lora_A.other.weight": 0}
    with pytest.raises(ConversionError, match="keep one adapter"):
        lora.plain_names(two)
    with pytest.raises(ValueError, match="trained apart"):
        export(llm, internlm2.table(ADAPTED))
    some = dataclasses.replace(ADAPTED, lora=LoRAConfig(targets="q|v"))
    with pytest.raises(ConversionError, match="all three or none"):
        internlm2.table(some)
