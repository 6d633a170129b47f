# SPDX-License-Identifier: Apache-2.0
"""Adapters under the names of peft, and the base parameters under the names they get by wrapping.

peft 0.6 (the official environment) writes `base_model.model.<path>.weight` for a wrapped model's parameters
and `<path>.lora_A.default.weight` for adapters; from 0.7 on the base is `<path>.base_layer.weight`; a file of
adapters alone leaves `.default` out. `plain_names` brings them all to the shortest form, that of the tables.
"""

import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from vllm2_jax.convert.rules import ConversionError, Rule
from vllm2_jax.convert.transforms import TRANSPOSE, Transform, join_heads, split_heads
from vllm2_jax.llm.llama import LlamaConfig
from vllm2_jax.llm.lora import ATTENTION, PROJECTIONS, LoRAConfig


def plain_name(name: str) -> str:
    """The official name without what peft put into it; a name without any comes back as it is."""
    name = name.replace("base_model.model.", "").replace(".base_layer.", ".")
    return re.sub(r"\.lora_(A|B)\.\w+\.weight$", r".lora_\1.weight", name)


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors under plain names; nothing is read.

    Raises:
      ConversionError: two names become one, as when a checkpoint holds several adapters.
    """
    out: dict[str, Any] = {}
    for name, value in tensors.items():
        if plain_name(name) in out:
            raise ConversionError(f"{name} is not the only tensor for {plain_name(name)}; keep one adapter")
        out[plain_name(name)] = value
    return out


def rows(config: LlamaConfig, official: Mapping[str, str]) -> list[Rule]:
    """Rows for the adapters of a language model, none if it has none.

    Args:
      official: our projection -> pattern of its official path, the layer as first group.
    """
    if config.lora is None:
        return []
    found = []
    for name in PROJECTIONS:
        if name in official and config.lora.adapts(name):
            part = "attention" if name in ATTENTION else "mlp"
            a, b = transforms(config, name)
            path = f"layers/{part}/{name}/lora/"
            found.append(Rule(official[name] + r"\.lora_A\.weight", path + "a", a))
            found.append(Rule(official[name] + r"\.lora_B\.weight", path + "b", b))
    return found


def transforms(config: LlamaConfig, name: str) -> tuple[Transform, Transform]:
    """How A [rank, in] and B [out, rank] of a projection become [*inputs, rank] and [rank, *outputs]."""
    if name == "out":
        return join_heads(config.heads), TRANSPOSE
    if name in ATTENTION:
        return TRANSPOSE, split_heads(config.heads if name == "q" else config.kv_heads)
    return TRANSPOSE, TRANSPOSE


def shared(count: int) -> Transform:
    """One A [rank, in] for `count` projections that the official model has as one."""

    def inverse(*leaves: np.ndarray) -> np.ndarray:
        if any(not np.array_equal(leaf, leaves[0]) for leaf in leaves):
            raise ValueError(
                f"the official layout has one adapter for {count} projections, here they were trained apart; "
                "export the merged model (`Llama.merged`)"
            )
        return leaves[0].T

    return Transform(lambda x: (x.T,) * count, inverse)


def adapted(leaf: str, leaves: Container[str]) -> bool:
    """Whether a leaf is a kernel that has an adapter among these leaves."""
    return leaf.endswith("/kernel") and leaf.removesuffix("kernel") + "lora/a" in leaves


def merged(
    leaf: str, read: Callable[[str, slice], np.ndarray], config: LoRAConfig, rows: slice = slice(None)
) -> np.ndarray:
    """The kernels W + scale A B of some layers, as `llm.lora.fold` gives them; a layer at a time in float32.

    Args:
      leaf: path of the kernels, [layers, ...].
      read: any leaf by its path, of these layers.
      config: of the adapters.
      rows: the layers.
    """
    kernel = read(leaf, rows)
    a, b = (read(leaf.removesuffix("kernel") + f"lora/{name}", rows).astype(np.float32) for name in "ab")
    out = np.empty_like(kernel)
    for layer in range(len(kernel)):
        out[layer] = kernel[layer].astype(np.float32) + config.scale * np.tensordot(a[layer], b[layer], 1)
    return out
