# SPDX-License-Identifier: Apache-2.0
"""Random weights for tests: every parameter, norms and biases too, so that none can be forgotten unseen.

Drawn by numpy: compiling a model's own initialisers takes many times longer than the tests that use it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.nn.paths import flatten_paths


def randomized(make: Callable[[], Any], seed: int = 0, std: float = 0.3) -> Any:
    """The module that `make` builds, with normal parameters; scales of norms are around 1."""
    leaves, treedef = flatten_paths(jax.eval_shape(make))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        treedef,
        [
            jnp.asarray(rng.normal(path.endswith("scale"), std, leaf.shape), leaf.dtype)
            for path, leaf in leaves.items()
        ],
    )
