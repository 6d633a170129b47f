# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a run, waits for them, and reads what they wrote."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

from tests.commands import ROOT, Commands
from tests.conftest import DEVICES
from vllm2_jax.train import metrics

Log = dict[tuple[int, int], dict[str, list[str]]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Crew:
    """Processes of one run on this machine. A context: leaving it kills those that are left.

    Args:
      workdir: of the run; holds `err-<process>.txt`, what each process says.
      processes: how many.
      mesh: strategy.
      steps: of the run.
      devices: in each process.
      faults: process -> what happens to it, arguments of `survivor.survive`.
      session: each process leads a process group of its own, for signals to it and its children.
      commands: starts the processes sooner than Python does.
      settings: further ones, for all processes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        processes: int,
        steps: int,
        *,
        mesh: str = "fsdp",
        devices: int = 1,
        faults: dict[int, dict[str, Any]] | None = None,
        session: bool = False,
        commands: Commands | None = None,
        **settings: Any,
    ):
        workdir.mkdir(exist_ok=True)
        port, self.workdir = free_port(), workdir
        flags = os.environ["XLA_FLAGS"].replace(f"{DEVICES}=8", f"{DEVICES}={devices}")
        self.members, self.errors = [], []
        for number in range(processes):
            given = {
                "workdir": str(workdir),
                "mesh": mesh,
                "steps": steps,
                "process": number,
                "processes": processes,
                "port": port,
                **settings,
                **(faults or {}).get(number, {}),
            }
            env, module = {"XLA_FLAGS": flags}, "tests.distributed.survivor"
            if commands:
                self.members.append(commands.start(module, json.dumps(given), env=env))
                self.errors.append(self.members[-1].stderr)
                continue
            self.errors.append(workdir / f"err-{number}.txt")
            with open(self.errors[-1], "w") as file:
                self.members.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, json.dumps(given)],
                        cwd=ROOT,
                        env=os.environ | env,
                        stderr=file,
                        start_new_session=session,
                    )
                )

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: Any) -> None:
        for member in self.members:
            member.kill()
        for member in self.members:
            member.wait()

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        return [member.wait(timeout=max(1.0, deadline - time.monotonic())) for member in self.members]

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Until `step` is in the metrics."""
        deadline = time.monotonic() + seconds
        while max(losses(self.workdir), default=0) < step:
            assert time.monotonic() < deadline, self.said()
            assert all(member.poll() is None for member in self.members), self.said()
            time.sleep(0.02)

    def said(self) -> str:
        """What all processes have written to their standard error."""
        return "\n".join(path.read_text(errors="replace") for path in self.errors)


def losses(workdir: pathlib.Path) -> dict[int, float | None]:
    """Step -> loss; of repeated steps the last one."""
    if not (workdir / "metrics.jsonl").exists():
        return {}
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def steps_written(workdir: pathlib.Path) -> list[int]:
    """Steps in the order in which they were done; those after a resume stand twice."""
    return [line["step"] for line in metrics.read(workdir) if "loss" in line]


def records(workdir: pathlib.Path) -> Log:
    """(batch, group) -> task -> the records that were fed; a batch that was fed again has to be the same."""
    found: Log = {}
    for file in sorted(workdir.glob("records-*.jsonl")):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            place = line.pop("batch"), line.pop("group")
            assert found.setdefault(place, line) == line, f"{place} was fed {found[place]}, then {line}"
    return found
