# SPDX-License-Identifier: Apache-2.0
"""Painting and editing synthetic scenes: a tiny model with tiny decoders, from nothing, on a CPU.

    python -m launch.train --config configs/paint.py --workdir runs/paint
    python -m launch.evaluate --config configs/paint.py --workdir runs/paint

The autoencoders learn beside the rest, from reconstructing alone; the text encoders stay as random as they
were drawn. Evaluation asks for pairs of shape and colour that were never painted in training.
"""

from typing import Any

import ml_collections

from configs import base
from configs.groups import GROUPS
from configs.sizes import CAPTION, TINY_DECODERS

# Task -> decoder, link, tiles of a row, metric.
TASKS = {
    "t2i": ("stable_diffusion", "gen", 0, "agreement"),
    "edit": ("instruct_pix2pix", "edit", 1, "edits"),
}


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.steps = 2500
        config.dtype = config.frozen_dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 2
        config.model.queries.generation = 4
        config.model.llm.update(width=96, depth=2, heads=4, kv_heads=4, mlp=256)
        config.model.decoders = {name: TINY_DECODERS[name] for name, *_ in TASKS.values()}
        config.data.mixture = {task: {"rows": 6, **painting(task, "train")} for task in TASKS}
        config.data.groups = 1
        config.data.length = 96
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.eval.tasks = {
            task: {"metrics": (metric,), **painting(task, "heldout")} for task, (*_, metric) in TASKS.items()
        }
        config.eval.every = 500
        config.eval.quick = 48
        config.eval.pictures = 48
        config.optimizer.groups = GROUPS["all_painters"]
        config.optimizer.peak = 1.5e-3
        config.optimizer.b2 = 0.99
        config.log_every = 50
    return config


def painting(task: str, split: str) -> dict[str, Any]:
    """Scenes with one thing; every fourth pair of shape and colour is held out."""
    decoder, link, tiles, _ = TASKS[task]
    size = TINY_DECODERS[decoder]["size"]
    scene = {"task": task, "level": "one", "novel": True, "decoder_size": size, "split": split}
    return {
        "tiles": tiles,
        "decoder": decoder,
        "links": {link: 1},
        "capacities": {"size": size, "caption": CAPTION},
        "datasets": {"synthetic": scene},
    }
