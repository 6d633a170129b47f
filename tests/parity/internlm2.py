# SPDX-License-Identifier: Apache-2.0
"""InternLM2: grouped heads, linear and dynamic positions, biases, and a second call with a cache.

Positions count all columns, padding too, as in the official code. Rows of padding are left out: the official
mask lets them look at other columns.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import internlm2
from vllm2_jax.llm.llama import Llama, LlamaConfig
from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.rope import RopeConfig, rotation

# Scaling of each variant, and what it changes in the config; GOLDENS.md and the reference implementation.
VARIANTS = {
    "gqa": ({}, {}),
    "dyn": ({"scaling": "dynamic", "factor": 2.0, "max_positions": 8}, {"num_key_value_heads": 4}),
    "lin": ({"scaling": "linear", "factor": 2.0}, {}),
}


def config(sizes: dict, weights: dict[str, np.ndarray], rope: dict) -> LlamaConfig:
    """Sizes from the `internlm2` part of a golden set's config; depth, words and biases from the weights."""
    plain = RopeConfig(theta=float(sizes["rope_theta"]), max_positions=sizes["max_position_embeddings"])
    return LlamaConfig(
        vocab=len(weights["output.weight"]),
        width=sizes["hidden_size"],
        depth=1 + max(int(key.split(".")[2]) for key in weights if key.startswith("model.layers.")),
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        mlp=sizes["intermediate_size"],
        rms_eps=sizes["rms_norm_eps"],
        rope=dataclasses.replace(plain, **rope),
        qkv_bias="model.layers.0.attention.wqkv.bias" in weights,
        out_bias="model.layers.0.attention.wo.bias" in weights,
    )


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "internlm2")
    for tag, (rope, changes) in VARIANTS.items():
        weights = goldens.weights(folder, "internlm2", f"{tag}/")
        sizes = config(goldens.config(folder)["internlm2"] | changes, weights, rope)
        abstract = jax.eval_shape(lambda sizes=sizes: Llama(sizes, dtype=jnp.float32, rngs=Rngs(0)))
        llm = load(weights, internlm2.table(sizes), abstract)
        mine = {key[len(tag) + 1 :]: value for key, value in data.items() if key.startswith(f"{tag}/")}
        with jax.default_matmul_precision("highest"):
            for name, got, want in _variant(llm, mine):
                yield f"internlm2 {tag} {name}", got, want


def _variant(llm: Llama, data: dict[str, np.ndarray]) -> Iterator[Case]:
    mask = data["mask"].astype(bool)
    rows, length = mask.shape
    fed = data["next_ids"].shape[1]
    positions = jnp.broadcast_to(jnp.arange(length + fed), (rows, length + fed))
    x = llm.embed_tokens(jnp.asarray(data["ids"]))
    segments = jnp.asarray(mask, jnp.int32)
    hidden, caches = llm.prefill(x, positions=positions[:, :length], segments=segments, columns=length + fed)
    yield "logits", np.asarray(llm.logits(hidden))[mask], data["logits"][mask]
    if "hidden_0" in data:
        yield "embeddings", np.asarray(x), data["hidden_0"]
        first = _first_layer(llm, x, positions[:, :length], segments)
        yield "after the first layer", np.asarray(first)[mask], data["hidden_1"][mask]
        yield "after the last norm", np.asarray(hidden)[mask], data["hidden_2"][mask]

    visible = jnp.tril(jnp.ones((fed, length + fed), bool), length)
    visible &= jnp.pad(jnp.asarray(mask), ((0, 0), (0, fed)), constant_values=True)[:, None]
    hidden, _ = llm.step(
        llm.embed_tokens(jnp.asarray(data["next_ids"])),
        positions=positions[:, length:],
        caches=caches,
        column=jnp.int32(length),
        visible=visible,
    )
    yield "logits of a cached step", np.asarray(llm.logits(hidden)), data["next_logits"]


def _first_layer(llm: Llama, x: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    block = jax.tree.map(lambda leaf: leaf[0], llm.layers)

    def attend(q, k, v):
        return attention(q, k, v, causal=True, segments=segments), None

    return block(x, *rotation(llm.config.rope, positions, llm.config.head_dim), attend)[0]
