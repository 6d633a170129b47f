# SPDX-License-Identifier: Apache-2.0
"""The whole tiny model with a grounding decoder so small that it compiles in seconds, and scenes for it."""

import functools
from typing import Any

import ml_collections

from configs.groups import GROUPS
from configs.mixtures import MIXTURES
from launch.build import build_run, data_iterator
from tests.distributed.tiny import tiny_config

DECODER = {
    "backbone": {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 4},
    "width": 32,
    "levels": 3,
    "queries": 8,
    "encoder_layers": 1,
    "encoder_heads": 2,
    "encoder_mlp": 32,
    "encoder_points": 2,
    "decoder_layers": 2,
    "decoder_heads": 2,
    "decoder_mlp": 32,
    "decoder_points": 2,
    "mask_width": 8,
    "criterion": {"points": 16, "denoising": 2},
}
SIZE = 64  # of the decoder's pictures


def perception_config(**overrides: Any) -> ml_collections.ConfigDict:
    """Detection, referring and segmentation of easy scenes, one row each."""
    config = tiny_config()
    with config.unlocked(), config.ignore_type():
        config.model.decoders = {"grounding_dino": DECODER}
        config.data.mixture = MIXTURES["synthetic_perception"]
        config.data.length = 160
        config.optimizer.groups = GROUPS["all_links"]
        for task in config.data.mixture.values():
            task.rows, task.capacities.size = 1, SIZE
            task.datasets.synthetic.decoder_size = SIZE
        config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def perception_batch() -> Any:
    """One batch of eight groups."""
    config = perception_config(**{"sharding.strategy": "single"})
    return next(data_iterator(config, build_run(config)))["batch"]
