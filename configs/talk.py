# SPDX-License-Identifier: Apache-2.0
"""The first stage of the demo: a tiny model learns to talk about synthetic scenes, from nothing, on a CPU.

    python -m launch.train --config configs/talk.py --workdir runs/talk

Chat, captions, regions and the wording of answers with links, which name things, share one mixed step.
`configs/demo.py` goes on from there.
"""

import copy

import ml_collections

from configs import base
from configs.mixtures import HELDOUT, MIXTURES


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked():
        config.steps = 1800
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 4
        config.model.queries.perception = 2
        config.query_std = 0.02
        config.named_links = True
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
                ("chat", 8, 0, {**asked, "turns": 2}),
                ("caption", 8, 0, {}),
                ("region", 5, 2, {"turns": 2}),
            )
        }
        # Without their decoders: how links are called, and what they are called.
        for name in ("synthetic_perception", "synthetic_pose"):
            for task, entry in MIXTURES[name].items():
                words = {"rows": 1, "tiles": 1, "datasets": entry["datasets"]}
                config.data.mixture[task] = ml_collections.ConfigDict(words)
        config.data.groups = 1
        config.data.length = 120
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.eval.tasks = ml_collections.ConfigDict(copy.deepcopy(HELDOUT["synthetic"]))
        config.eval.tasks.chat.datasets.synthetic.update(asked)
        config.eval.every = 900
        config.optimizer.peak = 8e-4
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than this run lasts
        config.log_every = 50
    return config
