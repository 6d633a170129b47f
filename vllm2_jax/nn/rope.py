# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding in the half-split form of Llama, with linear and dynamic scaling."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    `linear` divides positions by `factor`; `dynamic` (NTK) widens the base once a row is longer than
    `max_positions`. Source: core_model 8.2, official `modeling_internlm2.py`.
    """

    theta: float = 10_000.0
    scaling: str = "none"  # none | linear | dynamic
    factor: float = 1.0
    max_positions: int = 4096

    def __post_init__(self):
        if self.scaling not in ("none", "linear", "dynamic"):
            raise ValueError(f"rope scaling {self.scaling!r} is not one of none, linear, dynamic")


def angles(
    config: RopeConfig,
    positions: Int[Array, "B T"],
    head_dim: int,
    lengths: Int[Array, " B"] | None = None,
) -> Float[Array, "B T half"]:
    """Rotation angles in float32; `lengths` (columns of a row so far) matters to `dynamic` only.

    `dynamic` recomputes the base for the longest row seen; keys already in a cache keep their rotation.
    Without `lengths` a row is as long as its last position says.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    position = positions.astype(jnp.float32)
    base = jnp.full((positions.shape[0], 1, 1), config.theta, jnp.float32)
    if config.scaling == "linear":
        position = position / config.factor
    elif config.scaling == "dynamic":
        lengths = positions.max(axis=1) + 1 if lengths is None else lengths
        ratio = config.factor * lengths / config.max_positions - (config.factor - 1)
        stretch = jnp.maximum(ratio, 1.0) ** (head_dim / (head_dim - 2))
        base = base * stretch.astype(jnp.float32)[:, None, None]
    return position[:, :, None] * base**-exponent


def rotate(x: Float[Array, "B T H D"], angle: Float[Array, "B T half"]) -> Float[Array, "B T H D"]:
    """Turns each pair (x[i], x[i + D/2]) by its angle; in float32, returned in the dtype of `x`."""
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
