# SPDX-License-Identifier: Apache-2.0
"""Stage 1, first phase: bridge and region encoder learn to speak to a frozen Vicuna-7B (paper table A13).

    python -m launch.train --config configs/stage1_pretrain_7b.py --workdir runs/stage1_pretrain \\
        --config.data.root=DATA --config.data.tokenizer=VICUNA --config.init.weights=CONVERTED

Hardware: written for a v5e-256 or larger; not run yet. The paper trained both phases of stage 1 in 5 days on
64 A100; how its 12.81 M samples divide between them was not published. 1,000 steps of 2,048 rows are 2 M.
"""

import ml_collections

from configs import base
from configs.groups import GROUPS
from configs.mixtures import MIXTURES


def get_config() -> ml_collections.ConfigDict:
    """What differs from `configs/base.py`."""
    config = base.get_config("7b")
    config.steps = 1000
    with config.ignore_type(), config.unlocked():
        config.data.mixture = MIXTURES["stage1_pretrain"]
    config.data.format = "plain"
    config.data.groups = 256  # of 8 rows: global batch 2048
    config.data.length = 1024  # 576 columns are the picture
    config.optimizer.groups = GROUPS["stage1_pretrain"]
    config.optimizer.peak = 1e-3
    config.attention = "splash"
    config.loss_chunk = 256
    config.remat.llm = "full"
    return config
