# SPDX-License-Identifier: Apache-2.0
"""Before `configs/paint.py`: a tiny model learns what is to be painted, autoencoders what scenes look like.

    python -m launch.train --config configs/paint_first.py --workdir runs/paint_first

From nothing, on a CPU. Painting starts from trained autoencoders, as the official stages do: where both learn
at once, noise predictors have to follow autoencoders that move for most of the run.
"""

import copy

import ml_collections

from configs import base
from configs.groups import GROUPS
from configs.mixtures import MIXTURES
from configs.sizes import PAINTERS, TINY_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.dtype = config.frozen_dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 2
        config.query_std = 0.02
        config.named_links = True
        config.model.queries.generation = 4
        config.model.llm.update(width=96, depth=2, heads=4, kv_heads=4, mlp=256)
        config.model.decoders = {
            name: {**TINY_DECODERS[name], "objective": "autoencoder"} for name in PAINTERS
        }
        config.data.mixture = copy.deepcopy(MIXTURES["synthetic_painting"])
        for task in config.data.mixture.values():
            task.rows = 8
        config.data.groups = 1
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.steps = 600
        config.optimizer.groups = (
            (r"^decoders/\w+/(unet|mapper|text)/", None),
            (r"/vae/", 2.0),
            *GROUPS["all_links"],
        )
        config.optimizer.peak = 2e-3
        config.optimizer.b2 = 0.99
        config.log_every = 50
    return config
