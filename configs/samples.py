# SPDX-License-Identifier: Apache-2.0
"""Real photos with real conversations, learnt by heart: the trainer of the demo on files.

    python -m launch.train --config configs/samples.py --config.data.root=FOLDER --workdir runs/samples
    python -m launch.evaluate --config configs/samples.py --config.data.root=FOLDER --workdir runs/samples

FOLDER holds `coco/llava_chat.json` (LLaVA conversations), `coco/captions.jsonl` and the photos they name.
"""

import ml_collections

from configs import demo


def get_config() -> ml_collections.ConfigDict:
    """Changes to `configs/demo.py`."""
    config = demo.get_config()
    with config.unlocked():
        config.steps = 400
        chat = {"llava": {"annotations": "{root}/coco/llava_chat.json", "max_tiles": 1}}
        caption = {"captions": {"annotations": "{root}/coco/captions.jsonl", "max_tiles": 1}}
        config.data.mixture = {
            "chat": {"rows": 4, "tiles": 1, "datasets": chat},
            "caption": {"rows": 4, "tiles": 1, "datasets": caption},
        }
        config.data.groups = 1
        config.data.length = 192
        config.eval.tasks = {"chat": {"tiles": 1, "regions": 0, "datasets": chat}}
        config.eval.every = 100
        config.eval.max_new = 128
        config.optimizer.peak = 1e-3
    return config
