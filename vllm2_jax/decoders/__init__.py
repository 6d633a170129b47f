# SPDX-License-Identifier: Apache-2.0
"""The task decoders by name. Adding one is a file in this folder and a line here (and in `tokens.LINKS`)."""

from collections.abc import Callable

from vllm2_jax.decoders.decoder import Decoder
from vllm2_jax.decoders.unipose.model import UniPose

# Name -> class; built by `DECODERS[name](config, link_width=..., rngs=...)`.
DECODERS: dict[str, Callable[..., Decoder]] = {
    "unipose": UniPose,
}
