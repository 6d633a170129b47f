# SPDX-License-Identifier: Apache-2.0
"""Painting and editing synthetic scenes: a tiny model with tiny decoders, on a CPU.

    python -m launch.train --config configs/paint_first.py --workdir runs/paint_first
    python -m launch.train --config configs/paint.py --workdir runs/paint
    python -m launch.evaluate --config configs/paint.py --workdir runs/paint

In two stages: `configs/paint_first.py` from nothing, then mappers and noise predictors beside the language
model. Text encoders stay as random as they were drawn, autoencoders as the first stage left them. Evaluation
asks for pairs of shape and colour that were never painted in training.
"""

import ml_collections

from configs import paint_first
from configs.mixtures import HELDOUT
from configs.sizes import PAINTERS, TINY_DECODERS


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/paint_first.py`."""
    config = paint_first.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 600
        config.model.decoders = {name: {**TINY_DECODERS[name], "objective": "noise"} for name in PAINTERS}
        config.eval.tasks = HELDOUT["synthetic_painting"]
        config.eval.quick = config.eval.pictures = 48
        config.eval.every = 300
        config.init.weights = "runs/paint_first"
        config.optimizer.muon = r"^decoders/.*kernel$"  # better scores in two thirds of Adam's steps
        config.optimizer.groups = (
            (r"^decoders/\w+/(vae|text)/", None),
            (r"^decoders/", 1.0),
            (r"^(vision|bridge|regions|llm|queries)/", 0.1),  # what links say should change little by now
        )
    return config
