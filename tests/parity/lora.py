# SPDX-License-Identifier: Apache-2.0
"""The whole model with adapters in the language model: forward, merged, loss and gradients."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import Case, goldens
from tests.parity.model import build, config_for, inputs_for
from vllm2_jax import links
from vllm2_jax.batch import flatten_groups
from vllm2_jax.convert import visionllmv2
from vllm2_jax.convert.lora import plain_name
from vllm2_jax.llm.llama import Llama
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.llm.loss import total_and_rows


def cases(folder: pathlib.Path) -> Iterator[Case]:
    sizes, data = goldens.config(folder), goldens.arrays(folder, "lora")
    config, tensors = config_for(folder, "lora")
    rank, alpha, dropout = (sizes["lora"][key] for key in ("r", "alpha", "dropout"))
    adapter = LoRAConfig(rank=rank, alpha=float(alpha), dropout=dropout)
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, lora=adapter))
    model = build(config, tensors | goldens.weights(folder, "lora"))
    inputs = jax.tree.map(jnp.asarray, inputs_for(data, config, sizes["token_ids"]))
    valid = data["in/attention_mask"].astype(bool)

    embedded = jax.jit(lambda model: flatten_groups(model.embed(inputs)))(model)
    yield "language model input", np.asarray(embedded)[valid], data["llm_inputs_embeds"][valid]

    @jax.jit
    def hidden(llm: Llama, x: jax.Array) -> jax.Array:
        positions, segments = flatten_groups(inputs.positions), flatten_groups(inputs.segments)
        return llm(x, positions=positions, segments=segments)

    states = hidden(model.llm, embedded)
    yield "hidden states", np.asarray(states)[valid], data["last_hidden_state"][valid]
    yield "logits", np.asarray(model.llm.logits(states))[valid], data["logits"][valid]
    merged = hidden(model.llm.merged(), embedded)
    yield "hidden states of merged kernels", np.asarray(merged)[valid], data["last_hidden_state"][valid]

    labels = links.mask_labels(jnp.asarray(data["labels"])[None], inputs)[0]
    yield "labels after masking", np.asarray(labels), data["labels_after"]
    graph, params = nnx.split(model)

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params)
        states = hidden(model.llm, flatten_groups(model.embed(inputs)))
        total, (_, _, weight) = total_and_rows(states, labels, model.llm.head)
        return total / weight.sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    yield "language model loss", np.asarray(value), data["lm_loss"]
    named = visionllmv2.export(gradient, config)
    for key in data:
        if key.startswith("grad/"):
            yield key, named[plain_name(key[5:])], data[key]
