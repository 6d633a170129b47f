# SPDX-License-Identifier: Apache-2.0
"""Talk and sight: a tiny model that can talk learns to detect, refer, segment and find keypoints in scenes.

    python -m launch.train --config configs/talk.py --workdir runs/talk
    python -m launch.train --config configs/mixed.py --workdir runs/mixed
    python -m launch.evaluate --config configs/mixed.py --workdir runs/mixed

In two stages, as the paper's: `configs/talk.py` first, from nothing; then all tasks in one mixed step, with
decoders from nothing. On a CPU.
"""

import ml_collections

from configs import talk
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import SCENE_DECODERS

_ROWS = {"chat": 6, "caption": 6, "region": 4, "det": 3, "grd": 3, "seg": 2, "pose": 6}


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/talk.py`."""
    config = talk.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 700
        config.model.decoders = {name: SCENE_DECODERS[name] for name in ("grounding_dino", "unipose")}
        mixture = config.data.mixture
        for name in talk.SEEING:
            mixture.update(MIXTURES[name])
            config.eval.tasks.update(HELDOUT[name])
            for task in MIXTURES[name]:
                mixture[task].length = talk.LINKED
        for task, rows in _ROWS.items():
            mixture[task].rows = rows
        config.eval.every = 350
        config.eval.quick = 40
        config.init.weights = "runs/talk"
        config.init.fresh = r"^decoders/"
        config.optimizer.schedule = "cosine"
        config.optimizer.peak = 8e-4
        config.optimizer.muon += r"|^decoders/(?!.*/(offsets|weights)/).*kernel$"
        config.optimizer.groups = (
            (r"^decoders/", 2.5),  # at 1.0 backbones take twice as many steps to tell shapes apart
            (r"^(vision|bridge)/", 3.0),
            (r"^(llm|regions|queries)/", 1.0),
        )
    return config
