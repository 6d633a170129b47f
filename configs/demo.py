# SPDX-License-Identifier: Apache-2.0
"""The demo: a tiny model talks about, detects, refers to, segments, poses, paints and edits scenes, on a CPU.

    make demo

In two stages, as the paper's: `configs/talk.py` first, from nothing; then all tasks in one mixed step, with
decoders from nothing but for the autoencoders.
"""

import ml_collections

from configs import talk
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import PAINTERS, SCENE_DECODERS

_ROWS = {"chat": 9, "caption": 7, "region": 4, "det": 3, "grd": 2, "seg": 2, "pose": 2, "t2i": 4, "edit": 5}


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/talk.py`."""
    config = talk.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 600
        config.model.decoders = {
            name: {**sizes, "objective": "noise"} if name in PAINTERS else sizes
            for name, sizes in SCENE_DECODERS.items()
        }
        mixture = config.data.mixture
        for name in talk.SEEING:
            mixture.update(MIXTURES[name])
            config.eval.tasks.update(HELDOUT[name])
        config.eval.tasks.update(HELDOUT["synthetic_painting"])
        for task, rows in _ROWS.items():
            mixture[task].rows = rows
        config.eval.every = 0  # `make demo` evaluates at the end
        config.eval.pictures = 40
        config.init.weights = "runs/talk"
        config.init.fresh = r"^decoders/(grounding_dino|unipose)/"
        config.optimizer.schedule = "cosine"
        config.optimizer.peak = 8e-4
        config.optimizer.muon += r"|^decoders/(?!.*/(offsets|weights)/).*kernel$"
        config.optimizer.groups = (
            (r"^decoders/\w+/(vae|text)/", None),
            (r"^decoders/", 2.5),  # at 1.0 backbones take twice as many steps to tell shapes apart
            (r"^(vision|bridge)/", 3.0),
            (r"^(llm|regions|queries)/", 1.0),
        )
    return config
