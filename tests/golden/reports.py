# SPDX-License-Identifier: Apache-2.0
"""The golden text reports: file name -> how to make its text. No devices, no weights."""

import functools
import pathlib
from collections.abc import Callable

import jax
from flax import nnx

from configs import base
from configs.groups import GROUPS
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.build import make_model, model_config
from vllm2_jax.sharding.mesh import abstract_mesh, find_strategy
from vllm2_jax.sharding.report import report
from vllm2_jax.train.optimizer import OptimizerConfig, make_tx, trained

FOLDER = pathlib.Path(__file__).parent

# (size, strategy, chips, slices): what a person would start with, from one host to a pod.
SHARDINGS = (
    ("tiny", "single", 1, 1),
    ("tiny", "dp", 8, 1),
    ("tiny", "zero1", 8, 1),
    ("tiny", "fsdp", 8, 1),
    ("tiny", "fsdp_tp", 8, 1),
    ("tiny", "multislice", 16, 2),
    ("7b", "fsdp", 256, 1),
    ("7b", "fsdp_tp", 256, 1),
    ("7b", "fsdp_seq", 64, 1),
    ("7b", "multislice", 512, 2),
    ("26b", "fsdp", 256, 1),
)


def sharding_report(size: str, strategy_name: str, chips: int, slices: int) -> str:
    """Parameters and Adam's state of stage 1 tuning under one strategy."""
    strategy = find_strategy(strategy_name)
    config = model_config(base.get_config(size), load_tokenizer(TINY_TOKENIZER))
    model = jax.eval_shape(functools.partial(make_model, config, 0))
    groups = GROUPS["stage1_tune"]
    _, params, frozen = nnx.split(model, trained(groups), ...)
    tx = make_tx(OptimizerConfig(groups=groups, steps=1, peak=1.0))
    parts = {
        "params": (params, strategy.rules),
        "frozen": (frozen, strategy.rules),
        "opt_state": (jax.eval_shape(tx.init, params), strategy.optimizer_rules),
    }
    return report(f"{size}, {strategy_name}", parts, abstract_mesh(strategy, chips, slices))


REPORTS: dict[str, Callable[[], str]] = {
    f"sharding/{size}_{strategy}_{chips}.txt": functools.partial(
        sharding_report, size, strategy, chips, slices
    )
    for size, strategy, chips, slices in SHARDINGS
}
