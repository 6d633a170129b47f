# SPDX-License-Identifier: Apache-2.0
"""A TPU program as far as a report needs it: optimised, scheduled, its memory laid out, but no machine code.

Most of a big compilation is machine code. The compiler has no way to leave it out, but on request writes down
what it knows before. So it runs in a process of its own, which is ended as soon as that is on disk.
"""

import dataclasses
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time

from launch.build import Config, build_run
from launch.compile_report import Memory
from launch.programs import lower, make_job

_OPTIMISED = "after_optimizations.txt"
_BUFFERS = "after_optimizations-buffer-assignment.txt"
_LAST = "after_optimizations_after_buffer_assignment.txt"  # written when the two others are complete
_LOWERED, _PROBLEM = "lowered.txt", "problem.txt"  # of `main`


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """What the compiler wrote down.

    Attributes:
      text: the program; "" if it does not fit.
      memory: of a device, `code` unknown; None if it does not fit.
      problem: what the compiler said if it does not fit.
      lower_seconds, compile_seconds: until the program was lowered, and from then on.
    """

    text: str
    memory: Memory | None
    problem: str
    lower_seconds: float
    compile_seconds: float


def scheduled(config: Config, program: str) -> Scheduled:
    """Compiles `program` (a name as `programs.make_job` takes it) of a config until it is scheduled.

    Raises:
      ValueError: the config is not for a TPU topology.
      RuntimeError: the compiler failed for another reason than memory.
    """
    devices = config.sharding.devices
    if not devices or devices.startswith("cpu"):
        raise ValueError(f"only programs for a TPU are scheduled before code is made, not {devices!r}")
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "config").write_bytes(pickle.dumps(config.to_dict()))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text"
        start = time.perf_counter()
        with open(place / "stderr.txt", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "launch.scheduled", folder, program],
                stdout=errors,
                stderr=errors,
                env={**os.environ, "XLA_FLAGS": flags.strip()},
            )
            try:
                while (ended := process.poll()) is None and not list(place.glob(f"*{_LAST}")):
                    time.sleep(0.5)
            finally:
                process.kill()
                process.wait()
        seconds = time.perf_counter() - start
        lowered = float(_read(place, _LOWERED) or seconds)
        problem = _read(place, _PROBLEM)
        if not problem and not list(place.glob(f"*{_LAST}")):
            memory_ran_out = ended == -signal.SIGKILL  # as the system does then
            how = "killed, probably as memory ran out" if memory_ran_out else f"exit {ended}"
            raise RuntimeError(f"the compiler ended early ({how}): {_read(place, 'stderr.txt')[-2000:]}")
        memory = None if problem else read_memory(_read(place, f"*.{_BUFFERS}"))
        text = "" if problem else _read(place, f"*.{_OPTIMISED}")
        return Scheduled(text, memory, problem, lowered, seconds - lowered)


def memory_problem(error: Exception) -> str:
    """What the compiler says of a program that does not fit; any other error is raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0]


def read_memory(buffers: str) -> Memory:
    """Main memory of a device from the compiler's list of allocations.

    What is both a parameter and part of the result is donated. Arrays on the chip ("color"), those inside of
    kernels ("thread-local") and constants, which belong to the code, do not count.
    """
    sizes = {"arguments": 0, "outputs": 0, "aliased": 0, "temporaries": 0}
    for size, rest in re.findall(r"^allocation \d+: size (\d+), (.*):$", buffers, re.MULTILINE):
        if "color" in rest or "thread-local" in rest or rest.startswith("constant"):
            continue
        given, returned = "parameter" in rest, "maybe-live-out" in rest
        kinds = [
            *(["arguments"] if given else []),
            *(["outputs"] if returned else []),
            *(["aliased"] if given and returned else []),
        ]
        for kind in kinds or ["temporaries"]:
            sizes[kind] += int(size)
    return Memory(**sizes, code=None)


def _read(place: pathlib.Path, pattern: str) -> str:
    found = sorted(place.glob(pattern))
    return found[-1].read_text() if found else ""


def main(folder: str, program: str) -> None:
    """Compiles in this process; ended from outside."""
    import jax
    import ml_collections

    place = pathlib.Path(folder)
    config = ml_collections.ConfigDict(pickle.loads((place / "config").read_bytes()))
    start = time.perf_counter()
    run = build_run(config)
    lowered = lower(make_job(program, config, run), run)
    (place / _LOWERED).write_text(str(time.perf_counter() - start))
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        (place / _PROBLEM).write_text(memory_problem(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
