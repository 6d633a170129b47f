# SPDX-License-Identifier: Apache-2.0
"""What the decoders that paint get beside their links: what to learn from, or what to make.

Rows are [B]; a row has one picture, however many links ask for it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from vllm2_jax.batch import Leaf
from vllm2_jax.decoders.diffusion.config import PainterConfig
from vllm2_jax.decoders.diffusion.samplers import Plan

Pixels = UInt8[Leaf, "B H W 3"] | Float[Leaf, "B H W 3"]


@struct.dataclass
class Targets:
    """What is learnt from. H and W are multiples of the autoencoder's factor.

    Attributes:
      image: the picture to make, RGB; floats are in [-1, 1] already.
      input: the picture to edit; None for generation.
      caption: tokens of the text that asks for it, by the text encoder's own tokenizer.
      has_caption: rows without one have no caption alignment loss.
      moments, input_moments: what the autoencoder's encoder makes of `image` and `input`. Given, they are
        read instead of the pictures, and the encoder is not run.
      caption_states: what the text encoder makes of `caption`; the same.
    """

    image: Pixels | None = None
    input: Pixels | None = None
    caption: Int[Leaf, "B T"] | None = None
    has_caption: Bool[Leaf, " B"] | None = None
    moments: Float[Leaf, "B h w M"] | None = None
    input_moments: Float[Leaf, "B h w M"] | None = None
    caption_states: Float[Leaf, "B T W"] | None = None


@struct.dataclass
class Request:
    """What is to be made.

    Attributes:
      seed: of each row's noise. A row's picture depends on it, on its link and on nothing else in the batch.
      input: the picture to edit; None for generation.
      plan: of the sampler; None is the config's.
      guidance, image_guidance: None are the config's.
    """

    seed: Int[Leaf, " B"]
    input: Pixels | None = None
    plan: Plan | None = None
    guidance: Float[Leaf, ""] | None = None
    image_guidance: Float[Leaf, ""] | None = None


def read_targets(arrays: Mapping[str, Any], *, edits: bool) -> Targets:
    """The targets among the arrays that the collator made.

    Raises:
      ValueError: neither picture nor moments, a caption of neither kind, or no picture to edit.
    """
    names = Targets.__dataclass_fields__  # type: ignore[attr-defined]
    found = Targets(**{name: jnp.asarray(arrays[name]) for name in names if name in arrays})
    needed = [("image", "moments"), ("caption", "caption_states")] + [("input", "input_moments")] * edits
    missing = [" or ".join(pair) for pair in needed if all(getattr(found, name) is None for name in pair)]
    if missing:
        raise ValueError(
            f"the targets lack {', '.join(missing)}; they have {', '.join(sorted(arrays))}: see "
            "data_pipelines.collate_diffusion"
        )
    return found


def read_request(arrays: "Mapping[str, Any] | Request", rows: int) -> Request:
    """A request out of what the collator made; rows without a "seed" are seeded by their number."""
    if isinstance(arrays, Request):
        return arrays
    picture = arrays.get("input")
    seed = jnp.asarray(arrays.get("seed", jnp.arange(rows)))
    return Request(seed=seed, input=None if picture is None else jnp.asarray(picture))


def example(rows: int, config: PainterConfig, *, edits: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """What the collator makes of `rows` rows."""
    picture = jax.ShapeDtypeStruct((rows, config.size, config.size, 3), jnp.uint8)
    return {
        "image": picture,
        "caption": jax.ShapeDtypeStruct((rows, config.text.length), jnp.int32),
        "has_caption": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    } | ({"input": picture} if edits else {})


def to_pixels(image: Pixels) -> Float[Array, "B H W 3"]:
    """uint8 RGB to [-1, 1]; floats are there already."""
    return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image
