# SPDX-License-Identifier: Apache-2.0
"""Poses of people in synthetic scenes: a tiny model with a tiny pose decoder.

    python -m launch.train --config configs/pose.py --workdir runs/pose
    python -m launch.evaluate --config configs/pose.py --workdir runs/pose

On a CPU, from nothing.
"""

import ml_collections

from configs import base
from configs.groups import GROUPS
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import TINY_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.steps = 3000
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 3
        config.model.vision.update(width=128, depth=2, mlp=384)
        config.model.vision_layer = -1
        config.model.llm.update(width=128, depth=3, heads=4, kv_heads=4, mlp=384)
        config.model.decoders = {"unipose": TINY_DECODERS["unipose"]}
        config.data.mixture = MIXTURES["synthetic_pose"]
        config.eval.tasks = ml_collections.ConfigDict(HELDOUT["synthetic_pose"])
        config.data.groups = 1
        config.data.length = 288  # 17 names and links
        config.optimizer.groups = GROUPS["all_links"]
        config.optimizer.peak = 8e-4
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than this run lasts
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.log_every = 50
    return config
