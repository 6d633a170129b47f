# SPDX-License-Identifier: Apache-2.0
"""The golden sharding reports are what the code says, and their numbers add up."""

import pytest
from flax import nnx

from tests.golden.reports import FOLDER, REPORTS, sharding_report
from vllm2_jax.nn.layers import param
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding.mesh import abstract_mesh
from vllm2_jax.sharding.report import report
from vllm2_jax.sharding.strategies import STRATEGIES


@pytest.mark.parametrize("name", REPORTS)
def test_golden_report(name):
    assert REPORTS[name]() == (FOLDER / name).read_text(), (
        "run `python -m tests.golden.update`, review the diff"
    )


def test_every_strategy_has_a_report():
    assert {name.split("_", 1)[1].rsplit("_", 1)[0] for name in REPORTS} == set(STRATEGIES)


def test_bytes_of_a_chip():
    strategy = STRATEGIES["fsdp_tp"]
    tree = {"w": param(nnx.initializers.ones, Rngs(0), (64, 32), ("embed", "mlp"))}
    text = report("x", {"params": (tree, strategy.rules)}, abstract_mesh(strategy, 8))
    assert "params/w  64x32  embed,mlp  fsdp,tensor  1.0 KiB" in text  # 64 * 32 * 4 / 8


def test_fallback_is_listed():
    text = sharding_report("tiny", "fsdp_tp", 24, 1)  # fsdp=12 divides none of the widths
    assert "llm/head: embed: 64 over fsdp=12" in text
