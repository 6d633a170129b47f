# SPDX-License-Identifier: Apache-2.0
"""One of two processes that score together: number, port, file for the values that it finds."""

import json
import pathlib
import sys

import jax
import numpy as np

from tests.evals.pictures import album, moved
from vllm2_jax.evals import EVALS
from vllm2_jax.evals.metric import Question, gather
from vllm2_jax.evals.semantic import LabelMap


def examples() -> dict[str, tuple[list, list]]:
    """Predictions and truths of nine examples for one metric of every kind."""
    truths = album(9)
    rng = np.random.default_rng(0)
    maps = [
        [LabelMap(rng.integers(0, 3, (5, i + 2)), ("sky", "tree", "road")) for i in range(9)]
        for _ in range(2)
    ]
    words = ["blue" if i % 3 else "red" * i for i in range(9)]
    return {
        **{name: ([moved(t, 2.0) for t in truths], truths) for name in ("mask", "keypoints", "crowdhuman")},
        "semantic": (maps[0], maps[1]),
        "vqa": (words, [Question(("blue",) * 3, kind=f"kind{i % 2}") for i in range(9)]),
    }


def score(process: int, processes: int) -> dict[str, float]:
    """All values, from the records of this process's share and, by `gather`, those of the others.

    Shares are of different sizes, and the example in the middle belongs to both of two processes.
    """
    first, last = process * 4, 9 if process + 1 == processes else 5
    scores = {}
    for name, (found, truths) in examples().items():
        metric = EVALS[name]
        records = {i: metric.record(found[i], truths[i]) for i in range(first, last)}
        scores |= metric.score(gather(records))
    return scores


if __name__ == "__main__":
    number, port, file = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    pathlib.Path(file).write_text(json.dumps(score(int(number), 2)))
