# SPDX-License-Identifier: Apache-2.0
"""One process of a run that something happens to: the small model on the real data pipeline, over words.

Every record is a sentence that nobody else says, so what was fed in each step can be read from the batches:
`records-<process>.jsonl` in the workdir. `python -m tests.distributed.survivor '{"process": 0, ...}'`.
"""

import functools
import json
import os
import pathlib
import resource
import signal
import sys
import time
from typing import Any

import grain
import jax
import numpy as np

import data_pipelines.mixture as mixture_module
from data_pipelines.collate import CollateSpec
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.exits import exit_code
from tests.train.small import make_batch, make_small
from tests.train.stream import run
from vllm2_jax.sharding.mesh import find_devices, find_strategy, make_mesh
from vllm2_jax.sharding.partition import host_groups
from vllm2_jax.train import fate

GROUPS, LENGTH = 8, 24
MIXTURE = {
    "chat": {
        "rows": 2,
        "datasets": {
            "talk": {"loader": "sentences", "name": "talk", "length": 60, "bad": [3, 17]},
            "read": {"loader": "sentences", "name": "read", "length": 900, "weight": 2.0},
        },
    },
    "text": {
        "rows": 1,
        "pack": True,
        "datasets": {"tale": {"loader": "sentences", "name": "tale", "length": 500}},
    },
}


class Sentences:
    """Record i says "<name> i". Records of `bad` cannot be read; reading `stuck` does not end."""

    def __init__(self, name: str, length: int, bad=(), stuck=None):
        self.name, self.length, self.bad, self.stuck = name, length, bad, stuck

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise DataError("nobody can read this", file=f"{self.name}.json")
        if index == self.stuck:
            time.sleep(10**6)
        return Example(
            self.name, f"{self.name}.json", str(index), [("human", ""), ("gpt", f"{self.name} {index}")]
        )


mixture_module.DATASETS["sentences"] = Sentences


class Fed(grain.DatasetIterator):
    """Writes which records each batch holds, and makes happen what `faults` ask for.

    Faults, each at a batch (counted from 1) of this process: "kill" while its step runs; "kill_saving" while
    a checkpoint is written behind it; "small_files" from there on no file may grow beyond 16 KiB, as on a
    full disk. `slow`: seconds that each batch takes.
    """

    def __init__(self, parent: Any, groups: tuple[int, ...], process: int, folder: pathlib.Path, every: int):
        super().__init__(parent)
        self.faults: dict[str, int] = {}
        self.slow = 0.0
        self._groups, self._folder, self._every = groups, folder, every
        self._tokenizer = load_tokenizer(TINY_TOKENIZER)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"records-{process}.jsonl", "a", encoding="utf-8")

    def _number(self) -> int:
        return self._parent.get_state()["rows"]["chat"] // (GROUPS * MIXTURE["chat"]["rows"])

    def __next__(self) -> Any:
        # One step is in flight while the next batch is fetched.
        if self._number() == self.faults.get("kill"):
            self._kill_after(str((self._number() - 1) // self._every * self._every))
        time.sleep(self.slow)
        element = next(self._parent)
        if self._number() == self.faults.get("small_files"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))
        fed = {task: self._texts(rows) for task, rows in element["batch"].items()}
        for place, group in enumerate(self._groups):
            line = {"batch": self._number(), "group": group} | {
                task: texts[place] for task, texts in fed.items()
            }
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return element

    def _texts(self, rows: Any) -> list[list[str]]:
        found = []
        for tokens, segments in zip(rows.inputs.tokens, rows.inputs.segments, strict=True):
            found.append(
                [
                    self._tokenizer.decode(line[at == number]).strip()
                    for line, at in zip(tokens, segments, strict=True)
                    for number in range(1, at.max() + 1)
                ]
            )
        return found

    def get_state(self) -> Any:
        if self._number() == self.faults.get("kill_saving"):
            self._kill_after(f"{self._number()}.*tmp*")
        return self._parent.get_state()

    def _kill_after(self, pattern: str) -> None:
        """Dies without a word as soon as a checkpoint's folder is there."""
        deadline = time.monotonic() + 60
        while not list(self._folder.glob(f"checkpoints/{pattern}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def set_state(self, state: Any) -> None:
        self._parent.set_state(state)


def boxes(mine: tuple[int, ...], bad: list[int]) -> Any:
    """Batches of random boxes; in the batches `bad` those of the first of these groups are infinite."""

    def element(seed: int) -> Any:
        batch = jax.tree.map(lambda x: x[list(mine)], make_batch(seed, GROUPS))
        if seed in bad:
            batch["det"].targets["box"]["y"][0] = np.inf
        return {"batch": batch, "counters": {}}

    return iter(grain.MapDataset.range(1000).map(element).to_iter_dataset())


def survive(
    workdir: str,
    mesh: str,
    steps: int,
    *,
    process: int = 0,
    devices: str = "",
    save_every: int = 4,
    bad: list[int] | None = None,
    stuck: int | None = None,
    timeout: float = 0.0,
    workers: int = 0,
    slow: float = 0.0,
    wait_for: str = "",
    **faults: int,
) -> Any:
    """Trains as `launch.train` does, with the faults of this process."""
    folder, rules = pathlib.Path(workdir), find_strategy(mesh)
    mine = host_groups(make_mesh(rules, find_devices(devices)), rules.rules, GROUPS)
    options = {"strategy": mesh, "devices": devices, "save_every": save_every, "total": 2 * steps}
    options |= {"weights": wait_for, "wait": True} if wait_for else {}
    if bad is not None:
        return run(folder, steps, data=boxes(mine, bad), **options)
    mixture = json.loads(json.dumps(MIXTURE))
    if stuck is not None:
        mixture["chat"]["datasets"]["read"]["stuck"] = stuck
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    batches = make_dataset(
        mixture,
        tokenizer=tokenizer,
        spec=CollateSpec(length=LENGTH, tile_size=8, tokens_per_tile=1, format="plain"),
        groups=GROUPS,
        mine=mine,
        seed=0,
        threads=2,
        workers=workers,
        timeout=timeout,
    )
    data = Fed(iter(batches), mine, process, folder, save_every)
    data.faults, data.slow = faults, slow
    make = functools.partial(make_small, vocab=tokenizer.vocab_size)
    return run(folder, steps, data=data, make=make, **options)


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    port, processes = settings.pop("port"), settings.pop("processes")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, settings["process"])
    try:
        with fate.shared(exit_code):
            survive(**settings)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"process {settings['process']}: {error}", file=sys.stderr)
        fate.leave(exit_code(error))
