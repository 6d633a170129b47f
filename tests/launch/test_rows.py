# SPDX-License-Identifier: Apache-2.0
"""Which examples a host reads, and in how many rows."""

import numpy as np
import pytest

from data_pipelines.collate import TaskShape
from data_pipelines.datasets.synthetic import load
from launch import build, rows
from launch.sights import First
from tests.distributed.tiny import tiny_config
from vllm2_jax.sharding.partition import host_share


@pytest.fixture(scope="module")
def run():
    return build.build_run(tiny_config(**{"sharding.devices": "cpu:4", "sharding.strategy": "dp"}))


def batches(run, wanted, count):
    """Of each batch: numbers of the examples, rows in all, and rows that are no padding."""
    source = load(task="chat", tile_size=run.model.vision.image_size)
    examples, shape = First(source, count), TaskShape(rows=1, tiles=1)
    for mine, batch, _ in rows.host_batches(run, run.spec, shape, wanted, examples):
        assert [example.record for _, example in mine] == [str(i) for i, _ in mine]
        filled = np.asarray(batch.inputs.segments).any((1, 2))
        assert filled[: len(mine)].all()
        yield [i for i, _ in mine], len(filled), int(filled.sum())


def test_one_host_reads_everything_once(run):
    assert host_share(run.mesh, run.strategy.rules) == (0, 1)
    assert [rows.whole_rows(run, n) for n in (1, 4, 5)] == [4, 4, 8]  # four devices
    assert list(batches(run, 3, 6)) == [([0, 1, 2, 3], 4, 4), ([4, 5], 4, 2)]


@pytest.mark.parametrize(
    "part, expected",
    [
        (0, [([0, 1, 2, 3], 4, 4), ([8, 9, 10], 4, 3)]),
        (1, [([4, 5, 6, 7], 4, 4), ([], 4, 0)]),  # padding, as long as the other one has some
    ],
)
def test_two_hosts_share(run, monkeypatch, part, expected):
    """Of the four devices each host has two, so three rows become four."""
    monkeypatch.setattr(rows, "host_share", lambda mesh, rules: (part, 2))
    assert [rows.whole_rows(run, n) for n in (1, 2, 3)] == [2, 2, 4]
    assert list(batches(run, 3, 11)) == expected
