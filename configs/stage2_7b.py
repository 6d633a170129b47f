# SPDX-License-Identifier: Apache-2.0
"""Stage 2: conversation, perception, painting and editing in every update (paper table A13).

    python -m launch.train --config configs/stage2_7b.py --workdir runs/stage2 \\
        --config.data.root=DATA --config.data.tokenizer=VICUNA --config.init.weights=start2 \\
        --config.init.fresh='AS PRINTED'

Hardware: written for a v5p-128 (64 chips); not run yet. The language model learns by adapters and its
embeddings, at a tenth of the decoders' rate; of generation only the mapper learns. The paper's batch of 256
is 32 groups of 8 rows; how often it drew which dataset was not published. Here every task has its row, so a
picture of ADE20K comes again sooner than one of Objects365. Not among them: CrowdHuman (300 objects),
counting, in-context masks and VCR, whose readers and entries `configs/mixtures*.py` have.

`init.weights` is what `configs/start_7b.py:stage2` assembles, the trunk of stage 1 and public decoders;
`init.fresh` is what that command prints: adapters, mappers and heads that no part has.
"""

from typing import Any

import ml_collections

from configs import base, stage3_paint_7b
from configs.groups import STAGE2
from configs.mixtures import MIXTURES

# Columns of a row where not 4,096, which chat may use up and 80 classes do (3,815 with COCO's, counted with
# Llama's tokenizer). Five tiles fill 2,880; beside them the longest questions and answers of this project's
# wordings take 71 columns (a region), 130 (an edit with its 64 queries), 360 (20 marks) or 384 (23 keypoints
# of an animal). Segmentation and AP-10K have fewer tiles and more names. All of these are one array.
TILED = 3328


def shorter(tasks: dict[str, Any], *names: str) -> dict[str, Any]:
    """The tasks, some of them with rows of `TILED` columns."""
    return {task: {**entry, "length": TILED} if task in names else entry for task, entry in tasks.items()}


def get_config() -> ml_collections.ConfigDict:
    """What differs from `configs/base.py`."""
    config, paint = base.get_config("7b"), stage3_paint_7b.get_config()
    chat = MIXTURES["stage1_tune"]
    config.steps = 87_600  # of 256 rows: as many samples as the paper's 22.42 M
    with config.ignore_type(), config.unlocked():
        config.model.llm.lora.update(rank=32, alpha=64.0)
        config.model.decoders = {
            "grounding_dino": {"remat": "full"},
            "unipose": {"remat": "full"},
            **paint.model.decoders.to_dict(),
        }
        tasks = {
            "chat": {**chat["chat"], "rows": 1},
            "region": {**chat["region"], "rows": 1},
            "det": {
                **MIXTURES["detection"]["det"],
                "datasets": {
                    name: options
                    for mixture, task in (
                        ("detection", "det"),
                        ("grounding", "salient"),
                        ("grounding", "det_cap"),
                    )
                    for name, options in MIXTURES[mixture][task]["datasets"].items()
                },
            },
            "grd": {**MIXTURES["grounding"]["grd"], "rows": 1},
            "seg": MIXTURES["grounding"]["seg"],
            "pose": MIXTURES["pose"]["pose"],
            **paint.data.mixture.to_dict(),
        }
        config.data.mixture = shorter(tasks, "region", "grd", "seg", "pose", "edit")
    config.data.groups = 32
    config.data.length = 4096
    config.data.truncate = True
    config.optimizer.groups = STAGE2
    config.optimizer.peak = 1e-4
    config.attention = "splash"
    config.loss_chunk = 512
    # For the memory of a v5p; "full" where a chip has less.
    config.remat.llm = "projections"
    config.sharding.strategy = "fsdp_seq"  # 32 groups over 64 chips: two of them share a group
    config.save_every = 2500
    return config
