# SPDX-License-Identifier: Apache-2.0
"""Poses of people in synthetic scenes: a tiny model with a tiny pose decoder.

    python -m launch.train --config configs/pose.py --workdir runs/pose
    python -m launch.evaluate --config configs/pose.py --workdir runs/pose

On a CPU, from nothing.
"""

import ml_collections

from configs import perception
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import SCENE_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/perception.py`: another decoder, other scenes."""
    config = perception.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 3000
        config.model.decoders = {"unipose": SCENE_DECODERS["unipose"]}
        config.data.mixture = MIXTURES["synthetic_pose"]
        config.eval.tasks = ml_collections.ConfigDict(HELDOUT["synthetic_pose"])
    return config
