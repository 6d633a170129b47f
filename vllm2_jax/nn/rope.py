# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding in the half-split form of Llama, with linear and dynamic scaling."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SCALINGS = ("none", "linear", "dynamic")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
      theta: base of the geometric row of wave lengths.
      scaling: `linear` divides positions by `factor`; `dynamic` (NTK) widens the base once a row is longer
        than `max_positions`. Source: official `modeling_internlm2.py`.
      factor: strength of the scaling.
      max_positions: columns the model was trained for; matters to `dynamic` only.
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    max_positions: int = 4096

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise ValueError(f"rope scaling {self.scaling!r} is not one of {', '.join(SCALINGS)}")


def rotation(
    config: RopeConfig,
    positions: Int[Array, "B T"],
    head_dim: int,
    lengths: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of every column's angles, float32; computed once and used by all layers.

    Args:
      positions: position of each column in its segment.
      head_dim: width of one head, even.
      lengths: columns of each row so far; matters to `dynamic` only. Without it a row is as long as its
        largest position says. Keys that are in a cache keep the rotation they were stored with, so decoding
        past `max_positions` differs from one pass over everything, in the official code as well.
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
    angle = position[:, :, None] * base**-exponent
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T H D"]:
    """Turns each pair (x[i], x[i + D/2]) by its angle; in float32, returned in the dtype of `x`."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
