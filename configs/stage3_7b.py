# SPDX-License-Identifier: Apache-2.0
"""Stage 3: all four decoders and the links learn, the trunk does not (paper table A13), to VisionLLM v2.

    python -m launch.train --config configs/stage3_7b.py --workdir runs/stage3 \\
        --config.data.root=DATA --config.data.tokenizer=VICUNA --config.init.weights=runs/stage2

Hardware: as stage 2, whose batch of 256 rows it has; not run yet. Of the language model only both embeddings
learn: the paper says frozen, the official code can do either. 450,000 steps of 256 rows are as many samples
as 12 times the paper's 9.61 M; how often which dataset was drawn was not published. Here two of eight rows
paint and one edits; what stage 2 leaves out is left out here too.
"""

import ml_collections

from configs import stage2_7b
from configs.groups import STAGE3
from configs.mixtures import MIXTURES


def get_config() -> ml_collections.ConfigDict:
    """What differs from `configs/stage2_7b.py`."""
    config = stage2_7b.get_config()
    config.steps = 450_000
    before = config.data.mixture.to_dict()
    with config.ignore_type(), config.unlocked():
        config.data.mixture = {
            **{task: before[task] for task in ("det", "grd", "seg")},
            **stage2_7b.shorter({"interactive": MIXTURES["grounding"]["interactive"]}, "interactive"),
            "pose": before["pose"],
            "t2i": {**before["t2i"], "rows": 2},
            "edit": before["edit"],
        }
    config.optimizer.groups = STAGE3
    return config
