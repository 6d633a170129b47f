# SPDX-License-Identifier: Apache-2.0
"""A run without arrays: shapes of its batch and of prompts, and the plain form that operations count in."""

import dataclasses
from typing import Any

import jax
import ml_collections

from data_pipelines.collate import TaskShape, blank_row, collate
from data_pipelines.mixture import task_shapes
from launch.build import Config, Run
from vllm2_jax.batch import Batch, Inputs
from vllm2_jax.sharding.partition import batch_sharding


def abstract_batch(config: Config, run: Run) -> Batch:
    """Shapes and shardings of one batch of the config's mixture; made by the real collator, opens no file."""
    batch = {}
    for task, shape in task_shapes(config.data.mixture.to_dict()).items():
        # Captions have as many ids whatever makes them; the tokenizer that ships needs no folder.
        sizes = {name: value for name, value in shape.capacities.items() if name != "tokenizer"}
        shape = dataclasses.replace(shape, capacities=sizes)
        rows, _ = collate([blank_row(run.tokenizer, run.spec, shape)] * shape.rows, run.spec, shape)
        batch[task] = _over_groups(rows, config, run)
    return batch


def abstract_prompts(config: Config, run: Run) -> Inputs:
    """Shapes and shardings of one prompt a group, with as many tiles as the mixture's largest task has."""
    tiles = max(shape.tiles for shape in task_shapes(config.data.mixture.to_dict()).values())
    shape = TaskShape(rows=1, tiles=tiles)
    rows, _ = collate([blank_row(run.tokenizer, run.spec, shape)], run.spec, shape)
    return _over_groups(rows.inputs, config, run)


def _over_groups(host: Any, config: Config, run: Run) -> Any:
    """Shapes of the groups of all devices, from one group's arrays."""
    sharding = batch_sharding(run.mesh, run.strategy.rules)
    groups = config.data.groups
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((groups, *x.shape[1:]), x.dtype, sharding=sharding), host
    )


def plain(config: Config) -> Config:
    """The same model without what saves memory: nothing is computed twice, attention is XLA's."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.attention, config.loss_chunk = "xla", 0
    config.remat = {part: "none" for part in config.remat}
    config.sharding = {"strategy": "single", "mesh": "", "devices": "cpu:1"}
    config.step = {"schedule": "mixed", "accumulate": 1}
    _reset(config.model.decoders)
    return config


def _reset(node: Any) -> None:
    """Every `remat` and `attention` below a node."""
    for key, value in node.items():
        if isinstance(value, ml_collections.ConfigDict):
            _reset(value)
        elif key in ("remat", "attention"):
            node[key] = {"remat": "none", "attention": "xla"}[key]
