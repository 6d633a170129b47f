# SPDX-License-Identifier: Apache-2.0
"""The real tiny model on synthetic scenes, small enough to compile in seconds."""

import functools
from typing import Any

import jax
import ml_collections

from configs import base
from launch.build import Run, build_run, data_iterator
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch
from vllm2_jax.train.state import create


def tiny_config(**overrides: Any) -> ml_collections.ConfigDict:
    """`configs/base.py:tiny` in float32 with one row a task; overrides are dotted keys."""
    config = base.get_config("tiny")
    config.dtype = "float32"
    config.frozen_dtype = "float32"
    config.steps = 8
    config.data.length = 96
    config.data.threads = 1
    config.data.prefetch = 0
    config.optimizer.warmup_steps = 0
    for task in config.data.mixture.values():
        task.rows = 1
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def host_batch() -> Any:
    """One batch of eight groups."""
    config = tiny_config(**{"sharding.strategy": "single"})
    return next(data_iterator(config, build_run(config)))["batch"]


def one_step(run: Run) -> tuple[Any, Any]:
    """The state and the metrics after one step, on the host."""
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        step = jax.jit(run.train_step, donate_argnums=0, out_shardings=(run.plan.shardings, None))
        batch = global_batch(run.mesh, run.strategy.rules, host_batch())
        return jax.device_get(step(create(run.plan), batch))
