# SPDX-License-Identifier: Apache-2.0
"""The real tiny model: every strategy and every way of walking the batch gives the same step."""

import jax
import numpy as np
import pytest

from launch.build import build_run
from tests.distributed.tiny import one_step, tiny_config
from vllm2_jax.sharding.strategies import STRATEGIES

# The slow ones are in tests/train/test_step.py too, on a model that compiles at once.
OTHERS = [
    *(
        pytest.param({"sharding.strategy": name}, marks=pytest.mark.slow)
        for name in STRATEGIES
        if name != "single"
    ),
    pytest.param({"sharding.strategy": "single", "step.schedule": "by_task"}, marks=pytest.mark.slow),
    pytest.param(
        {"sharding.strategy": "fsdp", "step.accumulate": 2, "sharding.devices": "cpu:4"},
        marks=pytest.mark.slow,
    ),
    pytest.param({"sharding.strategy": "fsdp_tp", "loss_chunk": 32}, marks=pytest.mark.slow),
    # The two above at once.
    {"sharding.strategy": "fsdp_tp", "loss_chunk": 32, "step.accumulate": 2, "sharding.devices": "cpu:4"},
]


@pytest.fixture(scope="module")
def single():
    return one_step(build_run(tiny_config(**{"sharding.strategy": "single"})))


@pytest.mark.parametrize("overrides", OTHERS, ids=str)
def test_same_step_as_on_one_device(overrides, single):
    state, metrics = one_step(build_run(tiny_config(**overrides)))
    assert metrics.keys() == single[1].keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, single[1][name], rtol=1e-5, atol=1e-5, err_msg=name)
    # Adam's first step is the sign of the gradient times the rate, so tiny gradients may differ in sign: the
    # moments, which are the gradients, are what has to agree.
    for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(single[0].opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
