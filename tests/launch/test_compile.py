# SPDX-License-Identifier: Apache-2.0
"""Reports about programs for devices that are not there: numbers add up, errors say what to change."""

import json
import re

import jax
import ml_collections
import numpy as np
import pytest

from launch import compile as aot
from launch.abstract import abstract_batch, activations
from launch.build import build_run
from launch.compile_report import check_state, explain, markdown, state_bytes
from launch.roofline import Roofline
from tests.distributed.tiny import host_batch, tiny_config


def config(**overrides):
    return tiny_config(**{"sharding.devices": "cpu:8", **overrides})


def small():
    """One task on two devices: the smallest step that has collectives."""
    one = config(**{"sharding.devices": "cpu:2", "data.groups": 2})
    aot.choose_tasks(one, ["chat"])
    return one


@pytest.fixture(scope="module")
def compiled():
    return aot.compile_report(small(), chip="v5e")


def test_the_batch_is_the_one_that_the_data_gives():
    found, expected = (
        [(path, x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(batch)]
        for batch in (abstract_batch(config(), build_run(config())), host_batch())
    )
    assert found == expected


def test_operations_are_those_of_the_model(compiled):
    report, run = compiled
    # Two counts that share nothing: the traced program of the whole batch, the compiled one of a device.
    assert report.flops * run.mesh.size == pytest.approx(report.model_flops, rel=0.02)
    assert sum(part["flops"] for part in report.by_part.values()) == report.flops
    assert report.by_part["llm"]["flops"] > report.by_part["vision"]["flops"] > 0
    assert report.unknown_loops == 0


@pytest.mark.slow
def test_remat_shows_as_work_beyond_the_model():
    report, _ = aot.compile_report(
        config(**{"remat.llm": "full", "sharding.devices": "cpu:1", "data.groups": 1})
    )
    assert 1.05 < report.flops / report.model_flops < 1.4  # the forward pass once more is at most a third
    assert report.times is None and report.chip is None


def test_memory_holds_the_state(compiled):
    report, run = compiled
    state = sum(report.state.values())
    shard = sum(
        np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(run.plan.abstract)
    )
    assert state == shard - 4  # all but the step
    assert state < report.memory.arguments < report.memory.total
    assert report.memory.aliased >= state - report.state["frozen"]


def test_the_report_as_text_and_json(compiled):
    report, run = compiled
    data = json.loads(json.dumps(report.to_json()))
    assert 0 < data["mfu_worst"] <= data["mfu_best"] < 1
    assert {row["kind"] for row in data["collectives"]} >= {"all-gather", "all-reduce"}
    text = markdown(report)
    assert "| strategy | fsdp: data=1, fsdp=2 |" in text and "| all-gather | fsdp |" in text
    batch = abstract_batch(small(), run)
    found = activations(run, batch)
    hidden = (2, 2, 96, 64)  # layers, rows, columns, width
    assert any(x.shape == hidden for x in found["llm"])
    parts = explain(run, report, found)
    assert "| llm/layers | 73,984 |" in parts
    assert re.search(r"\| llm \| \d+ \| [\d.]+ MiB \| float32\[", parts)
    assert sum(state_bytes(run).values()) == sum(report.state.values())


def test_state_beyond_the_memory_is_named():
    run = build_run(config(**{"sharding.strategy": "dp"}))
    with pytest.raises(ValueError, match=r"parameters of 'llm'.*whole on every device; take a strategy"):
        check_state(run, 2**20)
    check_state(build_run(config(**{"sharding.strategy": "fsdp"})), 2**20)


def test_sweep_ranks_and_goes_on_after_errors(monkeypatch):
    class Fake:
        def __init__(self, groups):
            self.memory, self.model_flops = object(), float(groups)
            self.times = Roofline(1.0, 1.0, 1.0, 0.0, 0.0)

    def compile_report(one, *, chip):
        if one.sharding.strategy == "dp":
            raise ValueError("does not divide")
        return Fake(one.data.groups), None

    monkeypatch.setattr(aot, "compile_report", compile_report)
    monkeypatch.setattr(aot, "_line", lambda *entry: "")
    ranking = aot.sweep(config(), ["sharding.strategy=fsdp|dp", "data.groups=8|16"])
    assert [name for name, _ in ranking[:2]] == [
        "sharding.strategy=fsdp data.groups=16",
        "sharding.strategy=fsdp data.groups=8",
    ]
    assert [found for _, found in ranking[2:]] == ["does not divide"] * 2


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: aot.sweep(config(), ["data.groups"]), r"not of the form key=value\|value"),
        (lambda: aot.set_key(config(), "data.group", "8"), "no key 'data.group'"),
        (lambda: aot.set_key(config(), "data.mixture", "8"), "cannot be swept"),
        (lambda: aot.choose_tasks(config(), ["pose"]), "no task pose; the mixture has caption, chat, region"),
        (lambda: aot.compile_report(config(), chip="v9"), "unknown chip 'v9'; choose one of v4"),
        (lambda: aot.compile_report(config(**{"data.groups": 6})), "6 groups do not split over 8"),
        (lambda: aot.compile_report(config(**{"sharding.mesh": "fsdp=3"})), "do not divide the 8 devices"),
    ],
)
def test_errors_say_what_to_change(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_some_tasks_alone():
    one = ml_collections.ConfigDict(config())
    aot.choose_tasks(one, ["chat"])
    assert list(abstract_batch(one, build_run(one))) == ["chat"]
