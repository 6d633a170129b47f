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
from vllm2_jax.train.state import Plan


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


def draw(plan: Plan, model: Any) -> Any:
    """For `vllm2_jax.train.state._draw` where a test is about something else: it compiles nothing."""
    leaves, tree = jax.tree.flatten(model)
    drawn = jax.tree.leaves(randomized(plan.make_model, std=0.1))
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            leaves[i] = jax.device_put(drawn[i].astype(leaf.dtype), leaf.sharding)
    return jax.tree.unflatten(tree, leaves)
