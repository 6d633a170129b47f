# SPDX-License-Identifier: Apache-2.0
"""From logits to the next token: greedy, temperature, top-p."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

# Chooses each row's next token from (logits [B, V], key, how many tokens each row has emitted [B]). A pytree,
# so that its settings are arguments of the compiled program and not constants in it.
Choose = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

Scalar = Float[Array, ""] | float


def sample(
    logits: Float[Array, "B V"], key: jax.Array, temperature: Scalar = 0.0, top_p: Scalar = 1.0
) -> Int[Array, " B"]:
    """One token a row.

    Args:
      logits: float32.
      key: randomness; unused at temperature 0.
      temperature: 0 takes the best token; otherwise logits are divided by it.
      top_p: keeps the fewest tokens that together have at least this probability, and equals of the last.
    """

    def draw() -> Int[Array, " B"]:
        scaled = logits / temperature
        return jax.random.categorical(key, jnp.where(scaled >= nucleus(scaled, top_p), scaled, -jnp.inf))

    # The sort of `nucleus` costs more than everything else here, so greedy decoding skips it.
    return jax.lax.cond(temperature > 0, draw, lambda: jnp.argmax(logits, axis=-1))


def nucleus(logits: Float[Array, "B V"], top_p: Scalar) -> Float[Array, "B 1"]:
    """The lowest logit that `top_p` keeps, of each row."""
    best_first = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(best_first, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = (before < top_p).at[:, 0].set(True)
    return jnp.min(best_first, axis=-1, keepdims=True, where=kept, initial=jnp.inf)


@struct.dataclass
class Sampler:
    """`sample` with its settings; the default is greedy."""

    temperature: Scalar = 0.0
    top_p: Scalar = 1.0

    def __call__(
        self, logits: Float[Array, "B V"], key: jax.Array, emitted: Int[Array, " B"]
    ) -> Int[Array, " B"]:
        """The next token of each row."""
        del emitted
        return sample(logits, key, self.temperature, self.top_p)
