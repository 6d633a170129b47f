# SPDX-License-Identifier: Apache-2.0
"""What a task decoder has to offer. A new one is a file with such a class and a line in `DECODERS`."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vllm2_jax.batch import Links

# (sum, weight): the loss is sum / max(weight, 1) after both are summed over the whole batch. A row without
# ground truth adds (0, 0). The coefficient of a loss term is part of the sum.
Weighted = tuple[Float[Array, ""], Float[Array, ""]]


@runtime_checkable
class Decoder(Protocol):
    """An `nnx.Module` that reads super links. It never sees the language model, only arrays."""

    def loss(self, links: Links, targets: Any, *, key: jax.Array) -> dict[str, Weighted]:
        """Loss terms by name, without the decoder's own name in front."""
        ...

    def predict(self, links: Links, inputs: Any, *, key: jax.Array) -> Any:
        """Predictions for the same kind of rows, `inputs` being the targets without ground truth."""
        ...

    @staticmethod
    def example(rows: int, config: Any) -> Any:
        """Abstract targets (`jax.ShapeDtypeStruct`) for `rows` rows: tests, compilation and docs use it."""
        ...


def add(a: Weighted, b: Weighted) -> Weighted:
    """Sum of two weighted values."""
    return a[0] + b[0], a[1] + b[1]


def mean(value: Weighted) -> Float[Array, ""]:
    """sum / max(weight, 1): 0 where nothing was weighed."""
    return value[0] / jnp.maximum(value[1], 1)
