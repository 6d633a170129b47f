# SPDX-License-Identifier: Apache-2.0
"""The demo with eyes: talk, detection, referring, segmentation and keypoints in one mixed step.

    python -m launch.train --config configs/mixed.py --workdir runs/mixed
    python -m launch.evaluate --config configs/mixed.py --workdir runs/mixed

From nothing, on a CPU.
"""

import ml_collections

from configs import demo
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import SCENE_DECODERS

_SEEING = ("synthetic_perception", "synthetic_pose")


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/demo.py`."""
    config = demo.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 2400
        config.model.queries.perception = 2
        config.model.decoders = {name: SCENE_DECODERS[name] for name in ("grounding_dino", "unipose")}
        # Fewer rows than the demo has, but chat and regions ask three times about each picture.
        mixture = config.data.mixture
        for task, rows in (("chat", 9), ("caption", 4), ("region", 4)):
            mixture[task].rows = rows
        mixture.chat.datasets.synthetic.turns = mixture.region.datasets.synthetic.turns = 3
        mixture.region.regions = 3
        for name in _SEEING:
            mixture.update(MIXTURES[name])
            config.eval.tasks.update(HELDOUT[name])
        config.data.length = 120
        config.eval.every = 800
        config.optimizer.groups = (
            (r"^decoders/", 2.5),  # at 1.0 backbones take twice as many steps to tell shapes apart
            (r"^(vision|bridge|regions|llm|queries)/", 1.0),
        )
    return config
