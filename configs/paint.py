# SPDX-License-Identifier: Apache-2.0
"""Painting and editing synthetic scenes: a tiny model with tiny decoders, from nothing, on a CPU.

    python -m launch.train --config configs/paint.py:autoencoder --workdir runs/paint_autoencoder
    python -m launch.train --config configs/paint.py --workdir runs/paint \\
        --config.init.weights=runs/paint_autoencoder

The first command trains the autoencoders alone, as Stable Diffusion's was trained before anything else. The
second trains everything but them and the text encoder, which stays as random as it was drawn: random
states tell captions apart, and that is what the alignment loss needs here.
"""

from typing import Any

import ml_collections

from configs import base

SIZE, CAPTION = 24, 28  # pixels of a picture's side, ids of a caption

_DECODER: dict[str, Any] = {
    "unet": {
        "channels_out": 8,
        "widths": (48, 96),
        "attends": (True, True),
        "depth": 1,
        "heads": 4,
        "context": 96,
        "groups": 8,
    },
    "vae": {"widths": (16, 24, 32), "depth": 1, "latent": 8, "groups": 8, "scale": 1.0},
    "text": {
        "vocab": 666,
        "width": 96,
        "depth": 2,
        "heads": 4,
        "mlp": 192,
        "length": CAPTION,
        "start": 1,
        "end": 2,
    },
    "mapper": {"heads": 4, "mlp": 192},
    "size": SIZE,
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
        config.model.queries.generation = 8
        config.model.llm.update(width=96, depth=2, heads=4, kv_heads=4, mlp=256)
        config.model.decoders = {
            "stable_diffusion": _decoder(8, stage, "ddim"),
            "instruct_pix2pix": _decoder(16, stage, "euler_ancestral"),
        }
        config.data.mixture = {
            "t2i": {"rows": 16, **_task("t2i", "stable_diffusion", "gen", 0)},
            "edit": {"rows": 16, **_task("edit", "instruct_pix2pix", "edit", 1)},
        }
        config.data.groups = 1
        config.data.length = 112
        config.eval.tasks = {
            name: {"metrics": metrics, **_task(*task, split="heldout")}
            for name, metrics, task in (
                ("t2i", ("agreement",), ("t2i", "stable_diffusion", "gen", 0)),
                ("edit", ("edits",), ("edit", "instruct_pix2pix", "edit", 1)),
            )
        }
        config.eval.pictures = 50
        if stage:
            config.steps = 2000
            config.optimizer.groups = ((r"/vae/", 1.0), (r".", None))
            config.optimizer.peak = 2e-3
        else:
            config.steps = 6000
            config.optimizer.groups = ((r"/(vae|text)/", None), (r".", 1.0))
            config.optimizer.peak = 1e-3
        config.optimizer.b2 = 0.99
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.log_every = 50
    return config


def _decoder(channels: int, stage: str, sampler: str) -> dict:
    return {
        **_DECODER,
        "unet": {**_DECODER["unet"], "channels": channels},
        "sampling": {
            "sampler": sampler,
            "steps": 20,
            "max_steps": 50,
            "guidance": 3.0,
            "image_guidance": 1.5,
        },
        "objective": stage or "noise",
    }


def _task(name: str, decoder: str, link: str, tiles: int, split: str = "train") -> dict:
    """Scenes with one thing; every fourth pair of shape and colour is held out."""
    scene = {"task": name, "level": "one", "novel": True, "decoder_size": SIZE, "split": split}
    return {
        "tiles": tiles,
        "decoder": decoder,
        "links": {link: 1},
        "capacities": {"size": SIZE, "caption": CAPTION},
        "datasets": {"synthetic": scene},
    }
