# SPDX-License-Identifier: Apache-2.0
"""A decoder reads its rows where they are: devices exchange what their strategy splits, and nothing else."""

import jax
import pytest

from launch.build import build_run
from launch.programs import decoder_job, lower
from tests.launch import small_decoders, small_painters
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.program import parse


def small(decoder, strategy):
    """A config with this decoder and one task that calls it, on eight devices."""
    source = small_decoders if decoder in small_decoders.DECODERS else small_painters
    config = source.config()
    with config.unlocked(), config.ignore_type():
        config.model.decoders = {decoder: source.DECODERS[decoder]}
        for task, entry in list(config.data.mixture.items()):
            if entry.get("decoder") != decoder:
                del config.data.mixture[task]
    config.data.groups = 8
    config.sharding.strategy, config.sharding.devices = strategy, "cpu:8"
    return config


@pytest.mark.parametrize("decoder", [*small_decoders.DECODERS, *small_painters.DECODERS])
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("dp", marks=pytest.mark.slow)])
def test_no_collective_beyond_those_of_the_strategy(decoder, strategy):
    config = small(decoder, strategy)
    run = build_run(config)
    job = decoder_job(decoder, config, run)
    text = lower(job, run).compile().as_text()
    found = collectives(parse(text), dict(run.mesh.shape))
    # Weights are gathered where the strategy splits them; gradients and sums of losses are added up.
    assert {one.kind for one in found} == {"fsdp": {"all-gather", "all-reduce"}, "dp": {"all-reduce"}}[
        strategy
    ]
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(job.arguments[:2])]
    rows = jax.tree.leaves(job.arguments[2])[0]
    assert rows.size * rows.dtype.itemsize > max(sizes)  # or the next line would not tell
    assert max((one.bytes for one in found if one.kind == "all-gather"), default=0) <= max(sizes)
    assert sum(one.times * one.bytes for one in found if one.kind == "all-reduce") <= 1.1 * sum(sizes)
