# SPDX-License-Identifier: Apache-2.0
"""Before `configs/mixed.py`: a tiny model learns to talk about scenes and how to call links, from nothing.

python -m launch.train --config configs/talk.py --workdir runs/talk
"""

import ml_collections

from configs import demo
from configs.mixtures import MIXTURES


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/demo.py`."""
    config = demo.get_config()
    with config.unlocked():
        config.steps = 1800
        config.model.queries.perception = 3
        config.query_std = 0.02
        config.named_links = True
        # Fewer rows than the demo has, but longer ones with several questions about each picture.
        mixture = config.data.mixture
        for task, rows in (("chat", 8), ("caption", 8), ("region", 5)):
            mixture[task].rows = rows
        mixture.chat.datasets.synthetic.turns = mixture.region.datasets.synthetic.turns = 2
        mixture.region.regions = 2
        # Without their decoders: how links are called, and what they are called.
        for name in ("synthetic_perception", "synthetic_pose"):
            for task, entry in MIXTURES[name].items():
                words = {"rows": 1, "tiles": 1, "datasets": entry["datasets"]}
                mixture[task] = ml_collections.ConfigDict(words)
        config.data.length = 128
        config.eval.every = 900
    return config
