# SPDX-License-Identifier: Apache-2.0
"""Grain batches and one call for a whole run of the small model."""

import pathlib
from typing import Any

import grain

from tests.train.small import make_batch, make_small
from vllm2_jax.sharding.mesh import find_devices, find_strategy, make_mesh
from vllm2_jax.train.loop import LoopConfig, train
from vllm2_jax.train.optimizer import OptimizerConfig, make_schedule, make_tx
from vllm2_jax.train.state import TrainState, plan
from vllm2_jax.train.step import make_train_step

GROUPS = [("^embed$", None), (".*", 1.0)]


def batches(groups: int = 8, bad: bool = False, records: int = 1000) -> Any:
    """An iterator of random batches in a shuffled order; the boxes of `bad` ones are infinite."""

    def element(seed: int) -> dict[str, Any]:
        batch = make_batch(seed, groups)
        if bad:
            batch["det"].targets["box"]["y"][:] = float("inf")
        return {"batch": batch, "counters": {"records": 3 * groups}}

    source = grain.MapDataset.range(records).seed(0).shuffle()
    return iter(source.map(element).to_iter_dataset())


def run(
    workdir: pathlib.Path,
    steps: int,
    *,
    data: Any = None,
    strategy: str = "fsdp",
    devices: str = "cpu:8",
    make=make_small,
    hooks=(),
    program=None,
    total: int = 8,
    **loop: Any,
) -> TrainState | None:
    """Trains the small model; the schedule is that of `total` steps, wherever a run stops."""
    rules = find_strategy(strategy)
    mesh = make_mesh(rules, find_devices(devices))
    optimizer = OptimizerConfig(groups=GROUPS, steps=total, peak=1e-2)
    state = plan(make, make_tx(optimizer), GROUPS, mesh, rules)
    step = make_train_step(state.graphdef, state.tx, make_schedule(optimizer), seed=0)
    return train(
        LoopConfig(workdir=str(workdir), steps=steps, **{"log_every": 1, "save_every": 4, **loop}),
        state,
        step,
        batches() if data is None else data,
        mesh,
        rules,
        run_config={"peak": 1e-2, "steps": total},
        program=program,
        hooks=hooks,
    )
