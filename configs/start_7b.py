# SPDX-License-Identifier: Apache-2.0
"""What the stages of the 7B begin with (paper, section 4.1), from its public homes.

    python -m launch.assemble --config configs/start_7b.py:stage1 --root PUBLIC --to start1
    python -m launch.assemble --config configs/start_7b.py:stage2 --root PUBLIC --to start2

Hardware: any machine with 8 GB of memory; disk for what is written, 14 GB for stage 1 in bfloat16. Stage 2
begins with the trunk of stage 1 (`PUBLIC/stage1_tune`, its workdir) and public decoders. Where each folder
comes from: `docs/weights.md`. Not run with the real files yet.
"""

import ml_collections

from configs import base, stage2_7b

PARTS = {
    "stage1": {
        "vision": "clip:clip-vit-large-patch14-336",
        "llm": "llama:vicuna-7b-v1.5",
    },
    "stage2": {
        "trunk": "ours:stage1_tune",
        "decoders/grounding_dino": "grounding_dino:grounding-dino-tiny",
        "decoders/unipose": "unipose:unipose_swint.pth",
        "decoders/stable_diffusion": "diffusers:stable-diffusion-v1-5",
        "decoders/instruct_pix2pix": "diffusers:instruct-pix2pix",
    },
}


def get_config(stage: str = "stage1") -> ml_collections.ConfigDict:
    """What differs from `configs/base.py`; `stage` is a key of `PARTS`.

    Raises:
      ValueError: another stage.
    """
    if stage not in PARTS:
        raise ValueError(f"unknown stage {stage!r}; choose one of {', '.join(PARTS)}")
    config = base.get_config("7b")
    with config.ignore_type(), config.unlocked():
        config.parts = PARTS[stage]
        if stage == "stage2":
            # With its adapters, which no part has: so the command names them among what begins random.
            config.model = stage2_7b.get_config().model
    return config
