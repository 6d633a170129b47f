# SPDX-License-Identifier: Apache-2.0
"""The task decoders by name. CONTRIBUTING.md says what adding one takes."""

from collections.abc import Callable

from vllm2_jax.decoders.decoder import Decoder
from vllm2_jax.decoders.diffusion.instruct_pix2pix import InstructPix2Pix
from vllm2_jax.decoders.diffusion.stable_diffusion import StableDiffusion
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.unipose.model import UniPose

# Name -> class; built by `DECODERS[name](config, link_width=..., rngs=...)`.
DECODERS: dict[str, Callable[..., Decoder]] = {
    "grounding_dino": GroundingDINO,
    "unipose": UniPose,
    "stable_diffusion": StableDiffusion,
    "instruct_pix2pix": InstructPix2Pix,
}
