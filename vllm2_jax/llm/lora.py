# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: a projection W is used as W + (alpha / rank) A B, and only A and B are trained."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.dropout import dropout
from vllm2_jax.nn.layers import Axes, param

ATTENTION = ("q", "k", "v", "out")
PROJECTIONS = (*ATTENTION, "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which projections get an adapter, and how strong it is.

    Attributes:
      rank, alpha: the adapter is scaled by `alpha / rank`.
      dropout: share of an adapter's inputs set to zero in training.
      targets: regex that must match the whole name of a projection (`PROJECTIONS`). The default is the
        official choice, which leaves the gate alone (`train.py`, Llama and InternLM2 alike).
    """

    rank: int = 32
    alpha: float = 64.0
    dropout: float = 0.05
    targets: str = "q|k|v|out|up|down"

    def __post_init__(self):
        if not any(self.adapts(name) for name in PROJECTIONS):
            raise ValueError(
                f"the LoRA targets {self.targets!r} match none of the projections {', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.alpha / self.rank

    def adapts(self, name: str) -> bool:
        """Whether the projection of this name gets an adapter."""
        return re.fullmatch(self.targets, name) is not None


class LoRA(nnx.Module):
    """The adapter of one projection: `a` [*inputs, rank] and `b` [rank, *outputs], zero at the start."""

    def __init__(
        self,
        config: LoRAConfig,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`axes` names the axes of the projection's kernel, those of the inputs first."""
        n = len(inputs)
        # peft draws A with kaiming_uniform(a=sqrt(5)), which is uniform with variance 1 / (3 fan_in).
        fan = nnx.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=tuple(range(n)), out_axis=-1
        )
        self.a = param(fan, rngs, (*inputs, config.rank), (*axes[:n], "lora"))
        self.b = param(nnx.initializers.zeros, rngs, (config.rank, *outputs), ("lora", *axes[n:]))
        self.config, self.dtype = config, dtype

    def __call__(self, x: Float[Array, "*I"], key: jax.Array | None = None) -> Float[Array, "*O"]:
        """What the adapter adds to the projection's output; inputs are dropped only when a key is given."""
        a, b = self.a[...].astype(self.dtype), self.b[...].astype(self.dtype)
        x = dropout(x, self.config.dropout, key)
        return self.config.scale * jnp.tensordot(jnp.tensordot(x, a, a.ndim - 1), b, 1)


def fold(
    kernel: Float[Array, "N *K"],
    a: Float[Array, "N *A"],
    b: Float[Array, "N *B"],
    scale: float,
) -> Float[Array, "N *K"]:
    """Kernels W + scale A B of N stacked layers, summed in float32 and returned in the dtype of W."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST  # a TPU multiplies float32 as bfloat16 otherwise
    product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1, precision=exact))(a, b)
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
