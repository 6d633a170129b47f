# SPDX-License-Identifier: Apache-2.0
"""What a task decoder has to offer. A new one is a file with such a class and a line in `DECODERS`."""

from typing import Any, Protocol, runtime_checkable

import jax

from vllm2_jax.batch import Links, Weighted


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
