# SPDX-License-Identifier: Apache-2.0
"""Detection, referring and segmentation on synthetic scenes: a tiny model with a tiny grounding decoder.

    python -m launch.train --config configs/perception.py --workdir runs/perception
    python -m launch.evaluate --config configs/perception.py --workdir runs/perception

On a CPU, from nothing.
"""

import ml_collections

from configs import base
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import SCENE_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.steps = 2000
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 3
        config.model.vision.update(width=128, depth=2, mlp=384)
        config.model.vision_layer = -1
        config.model.llm.update(width=128, depth=3, heads=4, kv_heads=4, mlp=384)
        config.model.queries.perception = 3
        config.query_std = 0.02
        config.named_links = True
        config.model.decoders = {"grounding_dino": SCENE_DECODERS["grounding_dino"]}
        config.data.mixture = MIXTURES["synthetic_perception"]
        config.eval.tasks = ml_collections.ConfigDict(HELDOUT["synthetic_perception"])
        config.data.groups = 1
        config.data.length = 144
        config.optimizer.groups = (
            (r"^decoders/", 2.5),  # at 1.0 the backbone takes twice as many steps to tell shapes apart
            (r"^(vision|bridge|regions|llm|queries)/", 1.0),
        )
        config.optimizer.peak = 8e-4
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than this run lasts
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.log_every = 50
    return config
