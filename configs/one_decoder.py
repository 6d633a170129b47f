# SPDX-License-Identifier: Apache-2.0
"""One decoder at its released size behind the tiny language model: what its train step costs by itself.

    python -m launch.compile --config configs/one_decoder.py:unipose --topology v5e:1x1

The part behind the colon is `grounding_dino` (the default), `unipose`, `stable_diffusion` or
`instruct_pix2pix`. One group has one picture: 800 pixels with 80 classes and room for 100 objects, 800 pixels
with 54 classes and 68 keypoints, or 512 and 256 pixels. What is frozen is what the released models froze.

Hardware: one chip; results in docs/performance.md. Links are 64 wide here, 4096 in the released model, which
only the first layer of a decoder reads.
"""

from typing import Any

import ml_collections

from configs import base

_PAINTER = {"unet": {"remat": "full", "attention": "splash"}}
_CAPTION = {"caption": 77}
_ALL = ((r".", 1.0),)
_PARTLY = ((r"^decoders/\w+/(vae|text)/", None), *_ALL)

# Decoder -> what differs from its released sizes, task, links, capacities, what is trained.
_CHOICES: dict[str, tuple[dict[str, Any], str, dict[str, int], dict[str, int], Any]] = {
    "grounding_dino": ({"remat": "none"}, "det", {"det": 80}, {"size": 800, "objects": 100}, _ALL),
    "unipose": ({"remat": "none"}, "pose", {"det": 54, "pose": 68}, {"size": 800, "objects": 50}, _ALL),
    "stable_diffusion": (
        _PAINTER,
        "t2i",
        {"gen": 1},
        {"size": 512, **_CAPTION},
        ((r"^decoders/stable_diffusion/unet/", None), *_PARTLY),
    ),
    "instruct_pix2pix": (
        {"unet": {"channels": 8, **_PAINTER["unet"]}},
        "edit",
        {"edit": 1},
        {"size": 256, **_CAPTION},
        _PARTLY,
    ),
}


def get_config(decoder: str = "") -> ml_collections.ConfigDict:
    """Changes to `configs/base.py`."""
    decoder = decoder or "grounding_dino"
    if decoder not in _CHOICES:
        raise ValueError(f"unknown decoder {decoder!r}; choose one of {', '.join(_CHOICES)}")
    sizes, task, links, capacities, groups = _CHOICES[decoder]
    config = base.get_config("tiny")
    with config.unlocked(), config.ignore_type():
        config.model.decoders = {decoder: sizes}
        config.data.mixture = {
            task: {
                "rows": 1,
                "tiles": 1,
                "decoder": decoder,
                "links": links,
                "capacities": capacities,
                "datasets": {"synthetic": {"task": task, "decoder_size": capacities["size"]}},
            }
        }
        config.data.groups = 1
        config.data.length = 1024
        config.optimizer.groups = groups
        config.sharding.strategy = "single"
    return config
