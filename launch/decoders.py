# SPDX-License-Identifier: Apache-2.0
"""Configs of the task decoders: `config.model.decoders` names what differs from the released models."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from vllm2_jax.decoders.diffusion.config import EDIT, PainterConfig
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.unipose.config import UniPoseConfig

Sizes = TypeVar("Sizes")

# Sizes and choices of the released models; the keys are those of `DECODERS`.
RELEASED: dict[str, Any] = {
    "grounding_dino": GroundingDINOConfig(),
    "unipose": UniPoseConfig(),
    "stable_diffusion": PainterConfig(),
    "instruct_pix2pix": EDIT,
}


def decoder_configs(values: Mapping[str, Mapping[str, Any]], dtype: str) -> dict[str, Any]:
    """Decoder -> its config.

    Args:
      values: decoder -> fields that differ, nested as the config is; an empty one is the released size.
      dtype: of products and activations, the same in the whole model.

    Raises:
      ValueError: a decoder or a field that there is not.
    """
    unknown = sorted(set(values) - set(RELEASED))
    if unknown:
        raise ValueError(
            f"config.model.decoders: unknown {', '.join(unknown)}; there are {', '.join(RELEASED)}"
        )
    return {
        name: override(RELEASED[name], {"dtype": dtype, **fields}, f"config.model.decoders.{name}")
        for name, fields in values.items()
    }


def override(base: Sizes, values: Mapping[str, Any], where: str) -> Sizes:
    """A dataclass with some fields replaced; a mapping replaces fields of a dataclass inside.

    Lists become tuples: a config that comes out of a checkpoint's JSON has no others.
    """
    known = [field.name for field in dataclasses.fields(base)]  # type: ignore[arg-type]
    changed = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}: no field {name!r}; there are {', '.join(known)}")
        if isinstance(value, Mapping):
            value = override(getattr(base, name), value, f"{where}.{name}")
        changed[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(base, **changed)  # type: ignore[type-var]
