# SPDX-License-Identifier: Apache-2.0
"""Painting and editing synthetic scenes: a tiny model with tiny decoders, from nothing, on a CPU.

    python -m launch.train --config configs/paint.py --workdir runs/paint
    python -m launch.evaluate --config configs/paint.py --workdir runs/paint

Trains everything but the text encoders, which stay as random as they were drawn; the autoencoders learn in
the same steps as those who use them. Evaluation asks for pairs of shape and colour that were never painted in
training.
"""

import copy

import ml_collections

from configs import base
from configs.groups import ALL_BUT_CAPTIONS
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import PAINTERS, TINY_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.dtype = config.frozen_dtype = "float32"  # CPUs have no fast bfloat16
        config.unroll = 2
        config.model.queries.generation = 4
        config.query_std = 0.02
        config.named_links = True
        config.model.llm.update(width=96, depth=2, heads=4, kv_heads=4, mlp=256)
        config.model.decoders = {name: TINY_DECODERS[name] for name in PAINTERS}
        config.data.mixture = copy.deepcopy(MIXTURES["synthetic_painting"])
        for task in config.data.mixture.values():
            task.rows = 8
        config.data.groups = 1
        config.data.threads = 1  # scenes are drawn in Python, where more threads wait for each other
        config.eval.tasks = HELDOUT["synthetic_painting"]
        config.eval.quick = config.eval.pictures = 48
        config.eval.every = 300
        config.steps = 1200
        config.optimizer.groups = ((r"/vae/", 2.0), *ALL_BUT_CAPTIONS)
        config.optimizer.peak = 2e-3
        config.optimizer.b2 = 0.99
        config.log_every = 50
    return config
