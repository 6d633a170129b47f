# SPDX-License-Identifier: Apache-2.0
"""A run with both decoders that see, small enough for tests."""

import ml_collections

from tests.distributed.tiny import tiny_config

BACKBONE = {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 4}
LAYERS = {"width": 32, "backbone": BACKBONE, "encoder_layers": 1, "drop_path": 0.0}
DECODERS = {
    "grounding_dino": {
        **LAYERS,
        "queries": 12,
        "encoder_heads": 4,
        "encoder_mlp": 32,
        "decoder_layers": 1,
        "decoder_heads": 4,
        "decoder_mlp": 32,
        "mask_width": 16,
        "criterion": {"points": 32, "denoising": 4},
    },
    "unipose": {
        **LAYERS,
        "backbone": {**BACKBONE, "stages": (1, 2, 3), "drop": "linear"},
        "queries": 12,
        "instances": 6,
        "heads": 4,
        "mlp": 32,
        "box_layers": 1,
        "keypoint_layers": 1,
        "criterion": {"denoising": 4},
    },
}
LINKS = {"det": {"det": 8}, "grd": {"grd": 1}, "seg": {"seg": 8}, "pose": {"det": 1, "pose": 17}}
METRICS = {
    "det": ("box", "mask", "count"),
    "grd": ("refer",),
    "seg": ("semantic",),
    "pose": ("keypoints", "box"),
}


def tasks(split: str) -> dict:
    """All perception tasks on synthetic scenes."""
    return {
        task: {
            "tiles": 1,
            "decoder": "unipose" if task == "pose" else "grounding_dino",
            "links": links,
            "capacities": {"size": 64, "objects": 6},
            "datasets": {
                "synthetic": {
                    "task": task,
                    "split": split,
                    "level": "people" if task == "pose" else "easy",
                    "decoder_size": 48,
                }
            },
        }
        for task, links in LINKS.items()
    }


def config() -> ml_collections.ConfigDict:
    """Chat, detection and pose are trained; all perception tasks are held out."""
    made = tiny_config(
        **{
            "steps": 1,
            "log_every": 1,
            "sharding.devices": "cpu:2",
            "data.length": 288,
            "data.groups": 2,
            "eval.examples": 3,
            "eval.pictures": 2,
            "eval.rows": 2,
            "eval.max_new": 4,
        }
    )
    with made.unlocked():
        made.model.decoders = DECODERS
        made.data.mixture = {
            "chat": {"rows": 1, "tiles": 1, "datasets": {"synthetic": {"task": "chat"}}},
            **{name: {"rows": 1, **task} for name, task in tasks("train").items() if name in ("det", "pose")},
        }
        heldout = {name: {"metrics": METRICS[name], **task} for name, task in tasks("heldout").items()}
        chat = {"tiles": 1, "datasets": {"synthetic": {"task": "chat", "split": "heldout"}}}
        made.eval.tasks = ml_collections.ConfigDict({"chat": chat, **heldout})
        made.optimizer.groups = ((r".", 1.0),)
    return made
