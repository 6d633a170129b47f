# SPDX-License-Identifier: Apache-2.0
"""The command that trains, on the real tiny model: resumes bit by bit, stops with the right exit code."""

import dataclasses
import functools
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from data_pipelines.errors import DataError, StalledError
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import build, executables, exits
from launch import compile as aot
from tests.commands import ROOT, Commands
from tests.distributed.tiny import tiny_config
from vllm2_jax.train import metrics
from vllm2_jax.train.checkpoint import SaveError
from vllm2_jax.train.fate import PeerError
from vllm2_jax.train.loop import train
from vllm2_jax.train.monitor import NotFiniteError


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


def four_steps(devices="cpu:2"):
    return tiny_config(**{"steps": 4, "log_every": 1, "data.prefetch": 2, "sharding.devices": devices})


@functools.cache
def built(devices):
    return build.build_run(four_steps(devices))


def run(workdir: pathlib.Path, *stops: int, devices="cpu:2", program=None):
    """Trains four steps in the parts that end at `stops`; the data is read ahead, as in a real run."""
    config, made = four_steps(devices), built(devices)
    for stop in stops:
        loop = dataclasses.replace(build.loop_config(config, str(workdir)), steps=stop)
        data = build.data_iterator(config, made)
        state = train(
            loop,
            made.plan,
            made.train_step,
            data,
            made.mesh,
            made.strategy,
            run_config=config.to_dict(),
            program=program,
        )
    return jax.device_get(state)


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def test_resume_is_bit_exact_with_model_and_data(tmp_path):
    made = built("cpu:2")
    step = jax.jit(made.train_step, donate_argnums=0, out_shardings=(made.plan.shardings, None))
    whole = run(tmp_path / "whole", 4, program=step)
    parts = run(tmp_path / "parts", 2, 4, program=step)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(set(losses(tmp_path / "whole").values())) == 4


# Quicker: a loaded program repeats its own step in test_compile.py; the test above trains by a program.
@pytest.mark.slow
def test_a_step_that_was_compiled_before_trains_alike(tmp_path):
    """On one device: a loaded program with collectives was seen to abort the process on virtual ones."""
    config = four_steps("cpu:1")
    found = aot.compiled(config, flops=1.0)
    devices = list(found.run.mesh.devices.flat)
    executables.save(tmp_path / "step", found.program, devices, name="train", config=config)
    program = executables.load(tmp_path / "step", devices, name="train", config=config)
    whole = run(tmp_path / "whole", 4, devices="cpu:1")
    state = run(tmp_path / "run", 4, devices="cpu:1", program=program)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config=configs/stage1_tune_7b.py"], "its tokenizer as --config.data.tokenizer=FOLDER"),
        (
            ["--config=configs/stage1_tune_7b.py", f"--config.data.tokenizer={TINY_TOKENIZER}"],
            "--config.data.root=FOLDER",
        ),
        (["--config=configs/base.py", "--config.sharding.mesh=fsdp=3"], "change the size of fsdp"),
        (["--config=configs/base.py", "--config.data.groups=6"], "6 groups do not split over 8 batch shards"),
        (["--config=configs/base.py", "--wait"], "set config.init.weights=FOLDER"),
        (
            ["--config=configs/base.py", "--config.log_every=0"],
            "config.log_every is 0; it has to be at least",
        ),
        (["--config=configs/base.py", "--config.data.prefetch=-1"], "data.prefetch is -1; it has to be at"),
        (["--config=configs/base.py", "--executable=gone"], "gone: no such file; launch.compile --save"),
    ],
)
def test_config_at_fault_exits_with_two(commands, flags, message, tmp_path):
    done = commands.run("launch.train", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_misspelt_keys_and_files_are_named(commands):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.train",
            "--config=configs/base.py",
            "--workdir=x",
            "--config.steps_=3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("launch.train: 'steps_'\nDid you mean \"steps\"")
    done = commands.run("launch.train", "--config=configs/nope.py", "--workdir=x", "--config.steps_=3")
    assert done.returncode == 2
    assert "configs/nope.py" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StalledError("no batch"), 4),
        (SaveError("no space"), 4),
        (NotFiniteError("nan"), 3),
        (DataError("broken"), 2),
        (ValueError("no such key"), 2),
        (FileNotFoundError("gone"), 2),
        (PeerError("another process", 3), 3),
        (RuntimeError("a bug"), 1),
        (OSError("a mount"), 1),
    ],
    ids=repr,
)
def test_every_kind_of_error_has_its_exit_code(error, code):
    """The table of `docs/pods.md`, by which schedulers start a job again or leave it to a person."""
    assert exits.exit_code(error) == code


def test_a_stage_waits_for_the_one_before_it(commands, tmp_path):
    """The second is started before the first, which has earlier checkpoints while it trains."""
    command = ["launch.train", "--config=configs/base.py:tiny"]
    command += ["--config.sharding.devices=cpu:1", "--config.data.groups=1", "--config.steps=3"]
    second = [*command, f"--workdir={tmp_path}/2", f"--config.init.weights={tmp_path}/1"]
    waiting = commands.start(*second, "--wait", "--stopped_code=42")
    first = commands.run(*command, f"--workdir={tmp_path}/1", "--config.save_every=1")
    assert first.returncode == 0, first.stderr
    assert waiting.wait() == 0  # it was not stopped
    third = commands.run(*second, f"--workdir={tmp_path}/3")
    assert third.returncode == 0, third.stderr
    assert losses(tmp_path / "2") == losses(tmp_path / "3")  # the batch it compiled with was not lost
    opened, *_ = metrics.read(tmp_path / "2")
    assert opened["seconds/compile"] > 0  # before there was a state


def test_a_stopped_run_ends_with_the_code_that_its_scheduler_wants(commands, tmp_path):
    command = ["launch.train", "--config=configs/base.py:tiny", f"--workdir={tmp_path}"]
    command += ["--config.sharding.devices=cpu:1", "--config.data.groups=1", "--config.steps=1000000"]
    running = commands.start(*command, "--stopped_code=42", "--config.log_every=1")
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
        assert time.monotonic() < deadline and running.wait(timeout=0.2) is None
    running.terminate()
    assert running.wait(timeout=120) == 42


def test_data_is_not_read_from_buckets():
    with pytest.raises(ValueError, match="mount the bucket on every host"):
        build.fill_root({"annotations": "{root}/train.json"}, "gs://bucket/coco")


def test_help_tells_how(commands):
    done = commands.run("launch.train", "--help")
    assert "any key can be set as --config.key=value" in " ".join(done.stdout.split())
