# SPDX-License-Identifier: Apache-2.0
"""Towers that turn pictures into tokens. A new one is a file and a line in `VISION`."""

from flax import nnx
from jax.typing import DTypeLike

from vllm2_jax.vision.clip import CLIP, CLIPConfig
from vllm2_jax.vision.internvit import InternViT, InternViTConfig

VisionConfig = CLIPConfig | InternViTConfig

# Name in a config -> its class of sizes and its tower.
VISION = {
    "clip": (CLIPConfig, CLIP),
    "internvit": (InternViTConfig, InternViT),
}


def build_vision(
    config: VisionConfig, *, dtype: DTypeLike, remat: str = "none", rngs: nnx.Rngs
) -> CLIP | InternViT:
    """The tower that belongs to the class of `config`."""
    towers = dict(VISION.values())
    return towers[type(config)](config, dtype=dtype, remat=remat, rngs=rngs)
