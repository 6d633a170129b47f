# SPDX-License-Identifier: Apache-2.0
"""A tiny model that learns from nothing on a CPU: what the small runs share.

    python -m launch.train --config configs/laptop.py --workdir runs/words

By itself it learns what `configs/base.py` asks: chat, captions and regions of synthetic scenes.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked():
        config.dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 4
        config.model.vision.update(width=128, depth=2, mlp=384)
        config.model.vision_layer = -1
        config.model.regions.hidden = 64
        config.model.llm.update(width=128, depth=4, heads=4, kv_heads=4, mlp=384)
        config.data.groups = 1
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.optimizer.peak = 8e-4
        config.optimizer.b2 = 0.95  # 0.999 remembers longer than a short run lasts
        config.log_every = 50
    return config
