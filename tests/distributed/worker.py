# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train together: number, port, workdir, mesh, steps, step to crash at."""

import os
import pathlib
import signal
import sys
import time

import grain
import jax

from tests.train.small import make_batch
from tests.train.stream import run

SAVED, GROUPS = 4, 8


def batches(host: int, hosts: int):
    """This host's groups of the batches that a single process would see."""

    def element(seed: int):
        share = slice(host * GROUPS // hosts, (host + 1) * GROUPS // hosts)
        batch = jax.tree.map(lambda x: x[share], make_batch(seed, GROUPS))
        return {"batch": batch, "counters": {}}

    source = grain.MapDataset.range(1000).seed(0).shuffle()
    return iter(source.map(element).to_iter_dataset())


def crash(workdir: pathlib.Path):
    """A hook: process 1 dies without a word, once a checkpoint is complete."""

    def hook(state):
        while not (workdir / "checkpoints" / str(SAVED)).exists():
            time.sleep(0.1)
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return hook


if __name__ == "__main__":
    number, port, workdir, mesh, steps, crash_at = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    hooks = [(int(crash_at), crash(pathlib.Path(workdir)))] if int(crash_at) else []
    data = batches(int(number), 2)
    every = SAVED if int(steps) < 100 else int(steps)
    run(
        pathlib.Path(workdir), int(steps), data=data, strategy=mesh, devices="", save_every=every, hooks=hooks
    )
