# SPDX-License-Identifier: Apache-2.0
"""Timing of several ways to do one thing, in turns, and what both sides of such a race need."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vllm2_jax.nn.paths import flatten_paths

Timed = Callable[[], Any]
Made = TypeVar("Made", bound=nnx.Module)


def need(*modules: str) -> None:
    """Leaves the program with what to install if a module of the peer is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"the peer needs {', '.join(missing)}: pip install -e '.[benchmark]'")


def race(sides: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every side, in turns; the first call of each is not counted."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def show(title: str, times: dict[str, list[float]], units: int, unit: str) -> None:
    """A table of one race; the ratio says how many times faster we are."""
    best = {name: min(found) for name, found in times.items()}
    print(f"\n{title}")
    for name, found in times.items():
        print(
            f"  {name:<18} best {best[name]:8.3f} s   median {np.median(found):8.3f} s   "
            f"{units / best[name]:9.0f} {unit}/s   ratio {best[name] / best['ours']:.2f}"
        )


def filled(make: Callable[[], Made]) -> Made:
    """What `make` builds, with norms that scale by 1 and some small weights or other elsewhere.

    How fast a model is does not depend on them, as long as nothing fades into denormal numbers.
    """
    tile = np.random.default_rng(0).normal(size=10_007).astype(np.float32) * 0.02
    leaves, treedef = flatten_paths(jax.eval_shape(make))

    def fill(path: str, shape: tuple[int, ...]) -> jax.Array:
        return jnp.ones(shape) if path.endswith("scale") else jnp.asarray(np.resize(tile, shape))

    return jax.tree.unflatten(treedef, [fill(path, leaf.shape) for path, leaf in leaves.items()])


def parameters(module: Any) -> int:
    """How many numbers a module learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(module))
