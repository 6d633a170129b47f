# SPDX-License-Identifier: Apache-2.0
"""Random keys for constructors, counted in Python: the numbers of `nnx.Rngs` without its traced counter.

`nnx.Rngs` keeps its counter in a Variable. While a program is traced that counter is a tracer, and each key
asks the tracer for a `sharding` it does not have: jax writes an error message that walks the whole program
traced so far, and flax throws it away. So the time to trace a model grew with the square of its parameters
(flax 0.12.8, jax 0.10.2): 168 s under a profiler for the abstract 7B model with two diffusion decoders, which
now takes 3 s without one.
"""

import jax
from flax import nnx


class Stream:
    """The keys `fold_in(key, 0)`, `fold_in(key, 1)`, ..., one a call."""

    def __init__(self, key: jax.Array):
        self.key, self.drawn = key, 0

    def __call__(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)


class Rngs(nnx.Rngs):
    """`nnx.Rngs` with its default stream alone, for the constructors of modules.

    Args:
      seed: an integer, or a key of jax.
    """

    def __init__(self, seed: int | jax.Array):
        super().__init__()
        self.default = Stream(jax.random.key(seed) if isinstance(seed, int) else seed)
