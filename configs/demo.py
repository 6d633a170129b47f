# SPDX-License-Identifier: Apache-2.0
"""The demo: a tiny model learns to talk about synthetic scenes, from nothing, on a CPU.

    make demo

Chat, captions and regions share one mixed step.
"""

import ml_collections

from configs import base
from configs.mixtures import HELDOUT


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked():
        config.steps = 1800
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.model.vision.update(width=128, depth=2, mlp=384)
        config.model.vision_layer = -1
        config.model.regions.hidden = 64
        config.model.llm.update(width=128, depth=3, heads=4, kv_heads=4, mlp=384)

        # Several questions a picture: the system sentence and the picture are paid for once.
        chat, caption, region = (
            {"synthetic": {"task": task, "turns": turns}}
            for task, turns in (("chat", 3), ("caption", 1), ("region", 3))
        )
        config.data.mixture = {
            "chat": {"rows": 12, "tiles": 1, "datasets": chat},
            "caption": {"rows": 4, "tiles": 1, "datasets": caption},
            "region": {"rows": 4, "tiles": 1, "regions": 3, "datasets": region},
        }
        config.data.groups = 1
        config.data.length = 128
        config.eval.tasks = HELDOUT["synthetic"]
        config.optimizer.peak = 1e-3
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than this run lasts
        config.log_every = 50
    return config
