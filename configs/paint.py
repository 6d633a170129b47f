# SPDX-License-Identifier: Apache-2.0
"""Painting and editing synthetic scenes: a tiny model with tiny decoders, from nothing, on a CPU.

    python -m launch.train --config configs/paint.py:autoencoder --workdir runs/paint_autoencoder
    python -m launch.train --config configs/paint.py --workdir runs/paint \\
        --config.init.weights=runs/paint_autoencoder
    python -m launch.evaluate --config configs/paint.py --workdir runs/paint

The first command trains the autoencoders alone, as Stable Diffusion's was trained before anything else. The
second trains everything but them and the text encoders, which stay as random as they were drawn. Evaluation
asks for pairs of shape and colour that were never painted in training.
"""

from typing import Any

import ml_collections

from configs import base
from configs.groups import ALL_BUT_CAPTIONS
from configs.sizes import CAPTION, TINY_DECODERS

# Task -> decoder, link, tiles of a row, metric.
TASKS = {
    "t2i": ("stable_diffusion", "gen", 0, "agreement"),
    "edit": ("instruct_pix2pix", "edit", 1, "edits"),
}


def get_config(stage: str = "") -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`.

    Args:
      stage: "autoencoder", or nothing for the decoders themselves.
    """
    if stage not in ("", "autoencoder"):
        raise ValueError(f"unknown stage {stage!r}: leave it out, or give autoencoder")
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.dtype = config.frozen_dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 2
        config.model.queries.generation = 4
        config.model.llm.update(width=96, depth=2, heads=4, kv_heads=4, mlp=256)
        config.model.decoders = {
            name: {**TINY_DECODERS[name], "objective": stage or "noise"} for name, *_ in TASKS.values()
        }
        rows = 12 if stage else 4
        config.data.mixture = {task: {"rows": rows, **painting(task, "train")} for task in TASKS}
        config.data.groups = 1
        config.data.length = 96
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.eval.tasks = {
            task: {"metrics": (metric,), **painting(task, "heldout")} for task, (*_, metric) in TASKS.items()
        }
        config.eval.quick = config.eval.pictures = 48
        if stage:
            config.steps = 600
            config.optimizer.groups = ((r"/vae/", 1.0), (r".", None))
            config.optimizer.peak = 4e-3
        else:
            config.steps = 1300
            config.optimizer.groups = ((r"/vae/", None), *ALL_BUT_CAPTIONS)
            config.optimizer.peak = 2e-3
            config.eval.every = 500
        config.optimizer.b2 = 0.99
        config.log_every = 50
    return config


def painting(task: str, split: str) -> dict[str, Any]:
    """Scenes with one huge thing; every fourth pair of shape and colour is held out."""
    decoder, link, tiles, _ = TASKS[task]
    size = TINY_DECODERS[decoder]["size"]
    scene = {"task": task, "level": "close", "novel": True, "decoder_size": size, "split": split}
    return {
        "tiles": tiles,
        "decoder": decoder,
        "links": {link: 1},
        "capacities": {"size": size, "caption": CAPTION},
        "datasets": {"synthetic": scene},
    }
