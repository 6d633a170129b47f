# SPDX-License-Identifier: Apache-2.0
"""Detection, referring and segmentation on synthetic scenes: a tiny model with a tiny grounding decoder.

    python -m launch.train --config configs/perception.py --workdir runs/perception
    python -m launch.evaluate --config configs/perception.py --workdir runs/perception

On a CPU, from nothing.
"""

import ml_collections

from configs import laptop
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import SCENE_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/laptop.py`."""
    config = laptop.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 2000
        config.unroll = config.model.llm.depth = 3
        config.model.queries.perception = 3
        config.query_std = 0.02
        config.named_links = True
        config.model.decoders = {"grounding_dino": SCENE_DECODERS["grounding_dino"]}
        config.data.mixture = MIXTURES["synthetic_perception"]
        config.eval.tasks = ml_collections.ConfigDict(HELDOUT["synthetic_perception"])
        config.data.length = 144
        config.optimizer.groups = (
            (r"^decoders/", 2.5),  # at 1.0 the backbone takes twice as many steps to tell shapes apart
            (r"^(vision|bridge|regions|llm|queries)/", 1.0),
        )
    return config
