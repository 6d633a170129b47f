# SPDX-License-Identifier: Apache-2.0
"""Painting and editing with Stable Diffusion 1.5 and InstructPix2Pix, as in stage 3 of the paper (table A13).

    python -m launch.train --config configs/stage3_paint_7b.py --workdir runs/paint \\
        --config.data.root=DATA --config.data.tokenizer=VICUNA --config.init.weights=start2 \\
        --config.init.fresh='AS PRINTED'

Hardware: written for a v5e-256 or larger; not run yet. The language model is frozen but for its embeddings;
of generation only the mapper learns, of editing the UNet too. The mapper's tenth of the learning rate is an
accident of the official code (its name contains "llm") that weights were trained with.

`init.weights` is what `configs/start_7b.py:stage2` assembles, which has more decoders than this run reads;
`init.fresh` is what that command prints. A converted checkpoint of the whole model needs none.
"""

import ml_collections

from configs import base
from configs.groups import STAGE3_PAINT

_CAPTION = {"caption": 77, "tokenizer": "{root}/stable-diffusion-v1-5/tokenizer"}


def get_config() -> ml_collections.ConfigDict:
    """What differs from `configs/base.py`."""
    config = base.get_config("7b")
    config.steps = 100_000
    with config.ignore_type(), config.unlocked():
        config.model.decoders = {
            name: {"unet": {"channels": channels, "remat": "full", "attention": "splash"}}
            for name, channels in (("stable_diffusion", 4), ("instruct_pix2pix", 8))
        }
        config.data.mixture = {
            "t2i": {
                "rows": 1,
                # 120 columns of words and queries, the rest for the caption; a longer one is skipped.
                "length": 512,
                "decoder": "stable_diffusion",
                "links": {"gen": 1},
                "capacities": {"size": 512, **_CAPTION},
                "datasets": {
                    "journeydb": {
                        "loader": "text_to_image",
                        "weight": 4000.0,
                        "annotations": "{root}/journeydb/train.jsonl",
                        "image_field": "img_path",
                        "caption_field": "prompt",
                    },
                    "laion": {
                        "loader": "text_to_image",
                        "weight": 1500.0,
                        "annotations": "{root}/laion_aesthetics/*.tar",
                    },
                },
            },
            "edit": {
                "rows": 1,
                "tiles": 5,
                "decoder": "instruct_pix2pix",
                "links": {"edit": 1},
                "capacities": {"size": 256, **_CAPTION},
                "datasets": {
                    "instruct_pix2pix": {
                        "loader": "editing",
                        "weight": 400.0,
                        "annotations": "{root}/instruct_pix2pix/*.parquet",
                        "input_field": "original_image",
                        "instruction_field": "edit_prompt",
                        "output_field": "edited_image",
                    }
                },
            },
        }
    config.data.groups = 128  # of two rows: the paper's batch of 256
    config.data.length = 3072  # five tiles, an instruction and 64 queries: 3,010
    config.data.truncate = True
    config.optimizer.groups = STAGE3_PAINT
    config.optimizer.peak = 1e-4
    config.attention = "splash"
    config.loss_chunk = 512
    config.remat.llm = "full"
    config.save_every = 2500
    return config
