# SPDX-License-Identifier: Apache-2.0
"""The demo's first stage: a tiny model learns to talk about scenes and how to call links, from nothing.

Beside it the autoencoders of those decoders that paint learn what scenes look like.

    python -m launch.train --config configs/talk.py --workdir runs/talk

`configs/demo.py` goes on from there.
"""

import copy
from typing import Any

import ml_collections

from configs import laptop
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import PAINTERS, SCENE_DECODERS

# All kinds of question but those on relations between things, which take longer to learn than a demo lasts.
_ASKED = {"questions": ("colour", "shape", "size", "where", "count", "exists")}
_TALK: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("chat", 8, 0, {**_ASKED, "turns": 2}),
    ("caption", 10, 0, {}),
    ("region", 6, 2, {"turns": 2}),
)
SEEING = ("synthetic_perception", "synthetic_pose")
_PAINTING = (("t2i", 64), ("edit", 96))  # columns of a row


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/laptop.py`."""
    config = laptop.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = 1300
        config.frozen_dtype = "float32"  # as `dtype`
        config.model.queries.update(perception=3, generation=4)
        config.model.decoders = {
            name: {**SCENE_DECODERS[name], "objective": "autoencoder"} for name in PAINTERS
        }
        config.query_std = 0.02
        config.named_links = True
        config.data.format = "bare"
        config.data.length = 96
        config.data.mixture = {
            task: {
                "rows": rows,
                "length": 64,
                "tiles": 1,
                "regions": regions,
                "datasets": {"synthetic": {"task": task, **options}},
            }
            for task, rows, regions, options in _TALK
        }
        # Without their decoders: how links are called, and what they are called.
        for name in SEEING:
            for task, entry in MIXTURES[name].items():
                words = {"rows": 1, "tiles": 1, "datasets": entry["datasets"]}
                config.data.mixture[task] = ml_collections.ConfigDict(words)
        for task, length in _PAINTING:
            entry = MIXTURES["synthetic_painting"][task]
            config.data.mixture[task] = ml_collections.ConfigDict({**entry, "rows": 3, "length": length})
        config.eval.tasks = ml_collections.ConfigDict(copy.deepcopy(HELDOUT["synthetic"]))
        config.eval.tasks.chat.datasets.synthetic.update(_ASKED)
        config.eval.every = 650
        # The second stage lowers the rate. With Muon the tower may learn faster than the rest, with Adam not.
        config.optimizer.schedule = "constant"
        config.optimizer.peak = 1.2e-3
        config.optimizer.muon = r"^(llm/layers|vision/blocks|bridge)/.*kernel$|^vision/patches/kernel$"
        config.optimizer.groups = (
            (r"^(vision|bridge)/", 4.0),
            (r"^(llm|regions)/|/vae/", 1.0),
            (r"^(queries|decoders)/", None),
        )
    return config
