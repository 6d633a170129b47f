# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs our side at the tiny size; how fast is for `python -m launch.benchmark` to say."""

import argparse
import importlib.util
import math

import numpy as np
import pytest

from launch import benchmark
from vllm2_jax.batch import IGNORE


@pytest.fixture(scope="module")
def run():
    return benchmark.benchmark_run("tiny")


def test_our_side_trains_and_generates(run):
    batch = benchmark.random_batch(run, 2)
    step = benchmark.training(run, batch)
    losses = [step(), step(), step()]
    assert losses[2] < losses[0] and all(math.isfinite(loss) for loss in losses)
    prompts = benchmark.random_batch(run, benchmark.PROMPTS, prompts=True)
    made = benchmark.generation(run, prompts)
    assert made() == benchmark.PROMPTS * benchmark.NEW_TOKENS


def test_the_peer_gets_the_same_rows(run):
    prompts = benchmark.random_batch(run, 4, prompts=True)
    theirs, ours = benchmark.for_peer(run, prompts), prompts["chat"].inputs
    for row in range(4):
        count = int(ours.segments[0, row].sum())
        np.testing.assert_array_equal(theirs["tokens"][row, -count:], ours.tokens[0, row, :count])
    assert theirs["image"].sum() == 4 * run.model.tokens_per_tile
    assert (theirs["labels"][theirs["image"]] == IGNORE).all()


def test_data_needs_no_model():
    found = benchmark.data(argparse.Namespace(rounds=1))
    assert found.keys() == {"chat", "caption", "region"}


@pytest.mark.parametrize("flag", ["--rounds=0", "--pixels=-1", "--json=gone/rounds.json", "--devices=2"])
def test_flags_at_fault_are_named(flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "data", flag])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert f"error: {flag.partition('=')[0]}" in capsys.readouterr().err


def test_race_takes_turns():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in ("ours", "peer")}
    times = benchmark.race(sides, 2)
    assert calls == ["ours", "peer"] * 3
    assert all(len(found) == 2 and min(found) >= 0 for found in times.values())


def test_missing_peer_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"\.\[benchmark\]"):
        benchmark.core(argparse.Namespace(size="tiny", rounds=1))
