# SPDX-License-Identifier: Apache-2.0
"""Two processes train one model; one is killed; both resume on another mesh, and no loss differs."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import DEVICES
from tests.distributed.worker import SAVED, batches
from tests.train.stream import run
from vllm2_jax.train import metrics
from vllm2_jax.train.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 8


def start(workdir: pathlib.Path, mesh: str, steps: int, crash_at: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.distributed.worker"]
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace(f"{DEVICES}=8", f"{DEVICES}=2")}
    return [
        subprocess.Popen(
            [*command, str(number), str(port), str(workdir), mesh, str(steps), str(crash_at)],
            cwd=ROOT,
            env=environment,
        )
        for number in range(2)
    ]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def test_killed_and_resumed_on_another_mesh(tmp_path):
    run(tmp_path / "whole", STEPS, data=batches(0, 1), devices="cpu:4")
    want = losses(tmp_path / "whole")

    first, second = start(tmp_path / "pair", "fsdp", STEPS, crash_at=6)
    try:
        assert second.wait(timeout=80) == -9
    finally:
        first.kill()
        first.wait()
    before = losses(tmp_path / "pair")
    assert SAVED <= max(before) < STEPS
    assert before == pytest.approx({step: want[step] for step in before}, rel=1e-5)

    pair = start(tmp_path / "pair", "fsdp_tp", STEPS, crash_at=0)
    assert [process.wait(timeout=80) for process in pair] == [0, 0]
    lines = [line["step"] for line in metrics.read(tmp_path / "pair") if "loss" in line]
    assert lines[len(before) :] == list(range(SAVED + 1, STEPS + 1))
    assert losses(tmp_path / "pair") == pytest.approx(want, rel=1e-5)


def test_sigterm_stops_both_at_the_same_step(tmp_path):
    pair = start(tmp_path, "fsdp", 1_000_000, crash_at=0)
    try:
        deadline = time.time() + 60
        while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
            assert time.time() < deadline and pair[0].poll() is None
            time.sleep(0.2)
        pair[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest() == max(losses(tmp_path))
