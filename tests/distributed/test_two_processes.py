# SPDX-License-Identifier: Apache-2.0
"""Two processes train one model: one is killed, is asked to stop, lacks its files. More: test_survival.py."""

import json
import os
import signal
import time

import pytest

from configs import base
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.build import build_run
from tests.commands import Commands
from tests.conftest import DEVICES
from tests.distributed.crew import Crew, free_port, losses, records, steps_written
from tests.distributed.survivor import GROUPS, survive
from tests.train.small import make_small
from vllm2_jax.train.checkpoint import Checkpoints, save_weights
from vllm2_jax.train.state import random_model

STEPS, SAVED = 8, 4


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(
        tmp_path_factory.mktemp("commands"), {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    ) as started:
        yield started


def test_killed_in_a_step_and_resumed_by_one_process_on_another_mesh(commands, tmp_path):
    survive(str(tmp_path / "whole"), "fsdp", STEPS, devices="cpu:4")
    with Crew(tmp_path / "crew", 2, STEPS, devices=2, faults={1: {"kill": 6}}, commands=commands) as crew:
        assert crew.wait()[1] == -signal.SIGKILL
        assert crew.members[0].returncode != 0  # ends by itself, and not as if all were well
    want, before = losses(tmp_path / "whole"), losses(tmp_path / "crew")
    assert SAVED <= max(before) < STEPS
    assert before == pytest.approx({step: want[step] for step in before}, rel=1e-5)

    survive(str(tmp_path / "crew"), "fsdp_tp", STEPS, devices="cpu:8")
    assert steps_written(tmp_path / "crew")[len(before) :] == list(range(SAVED + 1, STEPS + 1))
    assert losses(tmp_path / "crew") == pytest.approx(want, rel=1e-5)
    fed = records(tmp_path / "crew")
    assert fed == records(tmp_path / "whole")
    assert {place for place in fed if place[0] <= STEPS} == {
        (batch, group) for batch in range(1, STEPS + 1) for group in range(GROUPS)
    }


def test_sigterm_to_one_stops_both_at_the_same_step(commands, tmp_path):
    with Crew(tmp_path, 2, 1_000_000, save_every=10**6, commands=commands) as crew:
        crew.wait_for_step(2)
        crew.members[1].send_signal(signal.SIGTERM)
        assert crew.wait() == [0, 0]
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest() == max(losses(tmp_path))


def wait_until_fed(crew):
    """Until both have the batch that they compile with."""
    deadline = time.monotonic() + 120
    while not all((crew.workdir / f"records-{number}.jsonl").exists() for number in range(2)):
        assert time.monotonic() < deadline and all(m.poll() is None for m in crew.members), crew.said()
        time.sleep(0.1)


def test_both_go_on_when_the_weights_are_there_that_they_wait_for(commands, tmp_path):
    with Crew(tmp_path / "run", 2, STEPS, wait_for=str(tmp_path / "weights"), commands=commands) as crew:
        wait_until_fed(crew)
        save_weights(tmp_path / "part", make_small(load_tokenizer(TINY_TOKENIZER).vocab_size))
        (tmp_path / "part").rename(tmp_path / "weights")
        assert crew.wait() == [0, 0], crew.said()
    assert steps_written(tmp_path / "run") == list(range(1, STEPS + 1))


def test_sigterm_to_one_ends_the_wait_of_both(commands, tmp_path):
    with Crew(tmp_path / "run", 2, STEPS, wait_for=str(tmp_path / "weights"), commands=commands) as crew:
        wait_until_fed(crew)
        crew.members[1].send_signal(signal.SIGTERM)
        assert crew.wait() == [0, 0], crew.said()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("program", ["launch.train", "launch.evaluate"])
def test_a_host_without_its_files_ends_both_with_a_message(commands, tmp_path, program):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "chat.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config('tiny')\n"
        "    with config.unlocked():\n"
        "        llava = {'annotations': '{root}/chat.json', 'image_root': '{root}'}\n"
        "        config.data.mixture = {'chat': {'rows': 1, 'tiles': 1, 'datasets': {'llava': llava}}}\n"
        "        config.eval.tasks = {'chat': {'tiles': 1, 'datasets': {'llava': llava}}}\n"
        "    return config\n"
    )
    if program == "launch.evaluate":  # the process that has its data goes on to the weights
        save_weights(tmp_path / "run", random_model(build_run(base.get_config("tiny")).plan))
    # What Slurm tells its processes; the port of the coordinator follows from the number of the job.
    slurm = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    slurm["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(f"{DEVICES}=8", f"{DEVICES}=2")
    flags = ["--multihost", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    members = [
        commands.start(
            program,
            *flags,
            f"--config.data.root={tmp_path / root}",
            env=slurm | {"SLURM_PROCID": str(number)},
        )
        for number, root in enumerate(["there", "gone"])
    ]
    try:
        codes = [member.wait(timeout=120) for member in members]
    finally:
        for member in members:
            member.kill()
    said = [member.stderr.read_text(errors="replace") for member in members]
    assert codes == [2, 2], said
    assert "gone/chat.json: no such file. Remedy: check the path in the config" in said[1]
    assert "ended with process 1 of 2 on host" in said[0] and "gone/chat.json: no such file" in said[0]
