# SPDX-License-Identifier: Apache-2.0
"""A run without arrays: the shapes of its batch, its step lowered from them, the operations of its model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from data_pipelines.collate import blank_row, collate
from data_pipelines.mixture import task_shapes
from launch.build import Config, Run, build_run
from vllm2_jax.batch import Batch, mean
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import batch_sharding
from vllm2_jax.train.flops import count_flops
from vllm2_jax.train.residuals import stored


def abstract_batch(config: Config, run: Run) -> Batch:
    """Shapes and shardings of one batch of the config's mixture; made by the real collator, opens no file."""
    sharding = batch_sharding(run.mesh, run.strategy.rules)
    groups = config.data.groups
    batch = {}
    for task, shape in task_shapes(config.data.mixture.to_dict()).items():
        # Captions have as many ids whatever makes them; the tokenizer that ships needs no folder.
        sizes = {name: value for name, value in shape.capacities.items() if name != "tokenizer"}
        shape = dataclasses.replace(shape, capacities=sizes)
        rows, _ = collate([blank_row(run.tokenizer, run.spec, shape)] * shape.rows, run.spec, shape)
        batch[task] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((groups, *x.shape[1:]), x.dtype, sharding=sharding), rows
        )
    return batch


def lower_step(run: Run, batch: Batch) -> Any:
    """The train step as the loop runs it, traced and lowered for the run's mesh."""
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        step = jax.jit(run.train_step, donate_argnums=0, out_shardings=(run.plan.shardings, None))
        return step.lower(run.plan.abstract, batch)


def model_flops(config: Config, batch: Batch) -> float:
    """Operations of one step that the model needs: forward and backward, nothing computed twice.

    Attention counts the pairs that `nn.attention` looks at: of a causal row 5/8.
    """
    run = build_run(plain(config))
    state, batch = _bare(run.plan.abstract), _bare(batch)
    return count_flops(jax.grad(_loss(run)), state.params, state.frozen, batch)


def activations(run: Run, batch: Batch) -> dict[str, list[jax.ShapeDtypeStruct]]:
    """What the backward pass finds stored, by part of the model; shapes over all devices.

    The whole batch in one pass; slices and tasks one after the other store their part of it.
    """
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        return stored(_loss(run), run.plan.abstract.params, run.plan.abstract.frozen, batch)


def _loss(run: Run) -> Callable[[Any, Any, Batch], jax.Array]:
    """The loss of a run's step: `(params, frozen, batch) -> scalar`."""

    def loss(params: Any, frozen: Any, batch: Batch) -> jax.Array:
        model = nnx.merge(run.plan.graphdef, params, frozen)
        losses, _ = model.losses(batch, key=jax.random.key(0))
        return sum((mean(value) for value in losses.values()), jnp.zeros(()))

    return loss


def _bare(tree: Any) -> Any:
    """Shapes without shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def plain(config: Config) -> Config:
    """The same model without what saves memory: nothing is computed twice, attention is XLA's."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.attention, config.loss_chunk = "xla", 0
    config.remat = {part: "none" for part in config.remat}
    config.sharding = {"strategy": "single", "mesh": "", "devices": "cpu:1"}
    _reset(config.model.decoders)
    return config


def _reset(node: Any) -> None:
    """Every `remat` and `attention` below a node."""
    for key, value in node.items():
        if isinstance(value, ml_collections.ConfigDict):
            _reset(value)
        elif key in ("remat", "attention"):
            node[key] = {"remat": "none", "attention": "xla"}[key]
