# SPDX-License-Identifier: Apache-2.0
"""Stage 1, second phase: instruction tuning of the whole language model (paper table A13), to VisionLLM
v2-Chat.

    python -m launch.train --config configs/stage1_tune_7b.py --workdir runs/stage1_tune \\
        --config.data.root=DATA --config.data.tokenizer=VICUNA --config.init.weights=runs/stage1_pretrain

Hardware: compiled for 64 chips of v5p (docs/compile/README.md), not run yet. Its 128 groups split over at
most 128 chips; on more, set `sharding.strategy=fsdp_tp`. 12,500 steps of 1,024 rows are as many samples as
the paper's 12.81 M. Columns and checkpointing follow the flags left in the official evaluation scripts.
"""

import ml_collections

from configs import base
from configs.groups import GROUPS
from configs.mixtures import MIXTURES


def get_config() -> ml_collections.ConfigDict:
    """What differs from `configs/base.py`."""
    config = base.get_config("7b")
    config.steps = 12_500
    with config.ignore_type(), config.unlocked():
        config.data.mixture = MIXTURES["stage1_tune"]
    config.data.groups = 128  # of 8 rows: global batch 1024
    config.data.length = 4096  # five tiles are 2880 columns
    config.data.truncate = True
    config.optimizer.groups = GROUPS["stage1_tune"]
    config.optimizer.peak = 2.5e-5
    config.attention = "splash"
    config.loss_chunk = 512
    config.remat.llm = "full"
    config.save_every = 2500
    return config
