# SPDX-License-Identifier: Apache-2.0
"""Commands as processes of their own that do not import jax and all of ours each time.

They fork from a process that has imported what the commands of `launch` need, and has started nothing else.
Each runs its module as `python -m` does, with its own flags, signals, devices and exit code.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
# What `launch.train` and others import. Not a command itself: its flags would be there twice.
_READY = ("launch.build", "launch.executables", "launch.exits", "launch.heldout", "vllm2_jax.train.loop")


@dataclasses.dataclass
class Command:
    """One that was started, as `subprocess.Popen` is one: its number, and the files that it writes to."""

    commands: "Commands"
    pid: int
    stdout: pathlib.Path
    stderr: pathlib.Path
    returncode: int | None = None

    def wait(self, timeout: float = 300) -> int | None:
        """Its exit code, negative for a signal; none if it still runs after so many seconds."""
        if self.returncode is None:
            self.returncode = self.commands.ask(wait=self.pid, timeout=timeout)
        return self.returncode

    def poll(self) -> int | None:
        """The same at once."""
        return self.wait(timeout=0)

    def send_signal(self, number: int) -> None:
        """To the process, if there still is one."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


class Commands:
    """Starts commands from the root of the repository; ends all of them with the block.

    Args:
      folder: for what they write to their outputs.
      env: variables that jax reads as it is imported.
    """

    def __init__(self, folder: pathlib.Path, env: dict[str, str] | None = None):
        self._folder, self._env = folder, env or {}
        self._count = 0

    def __enter__(self) -> "Commands":
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            env=os.environ | self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        with self._parent:
            self._parent.stdin.close()

    def start(self, module: str, *flags: str, env: dict[str, str] | None = None) -> Command:
        """A module with its flags, and variables that are read later."""
        self._count += 1
        files = [self._folder / f"{self._count}.{name}" for name in ("out", "err")]
        pid = self.ask(module=module, flags=flags, files=[str(file) for file in files], env=env or {})
        return Command(self, pid, *files)

    def run(self, module: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        one = self.start(module, *flags)
        code = one.wait()
        assert code is not None, f"{module} still runs"
        texts = (file.read_text(encoding="utf-8") for file in (one.stdout, one.stderr))
        return subprocess.CompletedProcess([module, *flags], code, *texts)

    def ask(self, **what: Any) -> Any:
        """What the parent of all commands answers."""
        print(json.dumps(what), file=self._parent.stdin, flush=True)
        return json.loads(self._parent.stdout.readline())


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.05)


def _main() -> None:
    for name in _READY:
        importlib.import_module(name)
    running = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = _wait(asked["wait"], asked["timeout"])
            if answer is not None:
                running.discard(asked["wait"])
        elif answer := os.fork():
            running.add(answer)
        else:
            break
        print(json.dumps(answer), flush=True)
    else:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return
    # From here on in the new process.
    for number, (file, mode) in enumerate(zip([os.devnull, *asked["files"]], "rww", strict=True)):
        with open(file, mode) as opened:
            os.dup2(opened.fileno(), number)
    os.environ.update(asked["env"])
    sys.argv[1:] = asked["flags"]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
