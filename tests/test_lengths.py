# SPDX-License-Identifier: Apache-2.0
"""Tasks may have rows of different lengths: the same losses as when all are padded to the longest."""

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs import base
from launch.abstract import abstract_batch
from launch.build import build_run, data_iterator, make_model
from tests.weights import randomized

LENGTHS = {"chat": 96, "caption": 0, "region": 96}  # 0: that of `config.data.length`


def config_of(lengths):
    config = base.get_config("tiny")
    with config.unlocked():
        config.dtype = "float32"
        config.data.groups, config.data.threads = 1, 1
        config.data.mixture = ml_collections.ConfigDict(config.data.mixture.to_dict())
        for task, length in lengths.items():
            config.data.mixture[task].length = length
        config.sharding.strategy = "single"
    return config


@pytest.fixture(scope="module")
def both():
    """Run, batch and losses with own lengths, then without."""
    found = []
    for lengths in (LENGTHS, {}):
        config = config_of(lengths)
        run = build_run(config)
        batch = next(data_iterator(config, run))["batch"]
        graph, params = nnx.split(randomized(lambda run=run: make_model(run.model, 0), std=0.1))
        losses = jax.jit(lambda params, batch, graph=graph: nnx.merge(graph, params).losses(batch))
        found.append((config, run, batch, losses(params, batch)))
    return found


def test_rows_are_as_long_as_their_task_says(both):
    config, run, batch, _ = both[0]
    assert {task: rows.labels.shape[-1] for task, rows in batch.items()} == {**LENGTHS, "caption": 128}
    described = abstract_batch(config, run)
    assert [x.shape for x in jax.tree.leaves(described)] == [x.shape for x in jax.tree.leaves(batch)]


def test_padding_changes_no_loss(both):
    (_, _, _, (terms, watch)), (_, _, padded, (terms_padded, watch_padded)) = both
    assert all(rows.labels.shape[-1] == 128 for rows in padded.values())
    assert float(terms["lm"][1]) == float(terms_padded["lm"][1]) > 0
    assert watch.keys() == watch_padded.keys()
    for name, (total, weight) in {**terms, **watch}.items():
        expected = {**terms_padded, **watch_padded}[name]
        np.testing.assert_allclose([total, weight], expected, rtol=1e-5)


def test_a_row_that_is_too_long_says_how_much_room_there_is():
    config = config_of({"chat": 40})
    with pytest.raises(Exception, match="where there is room for 40"):
        next(data_iterator(config, build_run(config)))
    with pytest.raises(ValueError, match=r"task 'chat'.*length=-1"):
        config = config_of({"chat": -1})
        next(data_iterator(config, build_run(config)))
