# SPDX-License-Identifier: Apache-2.0
"""The demo: a tiny model learns to talk about synthetic scenes, from nothing, on a CPU.

    make demo

Chat, captions and regions share one mixed step.
"""

import copy

import ml_collections

from configs import base
from configs.mixtures import HELDOUT


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked():
        config.steps = 3300
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 4
        config.model.vision.update(width=128, depth=2, mlp=384)
        config.model.vision_layer = -1
        config.model.regions.hidden = 64
        config.model.llm.update(width=128, depth=4, heads=4, kv_heads=4, mlp=384)

        # All kinds of question but those on relations between things, which take longer to learn than a demo
        # may last.
        asked = {"questions": ("colour", "shape", "size", "where", "count", "exists")}
        config.data.mixture = {
            task: {
                "rows": rows,
                "tiles": 1,
                "regions": regions,
                "datasets": {"synthetic": {"task": task, **options}},
            }
            for task, rows, regions, options in (
                ("chat", 14, 0, asked),
                ("caption", 10, 0, {}),
                ("region", 8, 1, {}),
            )
        }
        config.data.groups = 1
        config.data.length = 80
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.eval.tasks = ml_collections.ConfigDict(copy.deepcopy(HELDOUT["synthetic"]))
        config.eval.tasks.chat.datasets.synthetic.update(asked)
        config.eval.every = 750
        config.optimizer.peak = 8e-4
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than this run lasts
        config.log_every = 50
    return config
