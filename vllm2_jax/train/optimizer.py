# SPDX-License-Identifier: Apache-2.0
"""What is trained, how fast, by which rule: one table of (pattern, multiplier), AdamW or Muon, a schedule."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from vllm2_jax.sharding.partition import is_variable, path_name
from vllm2_jax.train.muon import muon

# Ordered (regex searched in the "/"-joined path of a parameter, learning-rate multiplier or None for frozen);
# the first entry that matches decides.
Groups = Sequence[tuple[str, float | None]]

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]

SCHEDULES = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. The defaults are the official ones (core_model 12, Hugging Face's AdamW).

    Attributes:
      groups: what is trained and at which multiple of the learning rate, see `Groups`.
      steps: updates of the whole run.
      peak: highest learning rate.
      schedule: "cosine" (to 0), "linear" (to 0) or "constant", each after a linear warm-up from 0.
      warmup_ratio: part of `steps` that warms up, rounded up; used where `warmup_steps` is -1.
      warmup_steps: updates that warm up, or -1.
      b1, b2, eps: of Adam.
      weight_decay: decoupled, multiplied by the learning rate.
      no_decay: parameters whose path this regex finds do not decay.
      muon: kernels whose path this regex finds are updated by Muon (`train/muon.py`) instead of Adam, at the
        same learning rate; "" is none. Not official.
      clip_norm: upper bound of the global gradient norm over all trained parameters; 0 is no bound.
    """

    groups: Groups
    steps: int
    peak: float
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int = -1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    # Unlike the official code we also exempt the scales of group norms and of InternLM2's RMS norms, which
    # its class check misses; with its weight decay of 0 both are the same.
    no_decay: str = r"(^|/)(bias|scale)$"
    muon: str = ""
    clip_norm: float = 1.0


def multipliers(model: Any, groups: Groups) -> dict[str, float | None]:
    """Path of every Variable of `model` (abstract or not) -> its multiplier, None for frozen.

    Raises:
      ValueError: lists every parameter that no pattern matches and every pattern that decides no parameter
        (one that never matches, or only where an earlier one has already matched).
    """
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_variable)
    decided: dict[str, float | None] = {}
    used, unmatched = set(), []
    for path in (path_name(path) for path, _ in leaves):
        entry = next((i for i, (pattern, _) in enumerate(groups) if re.search(pattern, path)), None)
        if entry is None:
            unmatched.append(path)
        else:
            used.add(entry)
            decided[path] = groups[entry][1]
    idle = [pattern for i, (pattern, _) in enumerate(groups) if i not in used]
    if unmatched or idle:
        raise ValueError(
            "optimizer.groups does not fit the model.\n"
            f"parameters that no pattern matches: {', '.join(unmatched) or 'none'}\n"
            f"patterns that decide no parameter: {', '.join(idle) or 'none'}\n"
            "Add a pattern for the former (None freezes), remove or move up the latter."
        )
    if all(multiplier is None for multiplier in decided.values()):
        raise ValueError("optimizer.groups freezes every parameter; nothing is left to train")
    return decided


def trained(groups: Groups) -> Callable[[tuple[Any, ...], Any], bool]:
    """An `nnx.split` filter that selects what `groups` trains."""

    def select(path: tuple[Any, ...], _) -> bool:
        name = "/".join(map(str, path))
        return next(value for pattern, value in groups if re.search(pattern, name)) is not None

    return select


def make_schedule(config: OptimizerConfig) -> Schedule:
    """Learning rate as a function of the step (0 for the first update, as in Hugging Face's schedules)."""
    warmup = config.warmup_steps
    if warmup < 0:
        warmup = math.ceil(config.warmup_ratio * config.steps)
    rest = max(config.steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(config.peak, rest),
        "linear": optax.linear_schedule(config.peak, 0.0, rest),
        "constant": optax.constant_schedule(config.peak),
    }
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if warmup >= config.steps and config.schedule != "constant":
        raise ValueError(
            f"{warmup} warm-up steps leave none of the {config.steps} steps to decay in: raise config.steps, "
            "or set config.optimizer.warmup_steps"
        )
    ramp = optax.linear_schedule(0.0, config.peak, warmup) if warmup else after[config.schedule]
    return optax.join_schedules([ramp, after[config.schedule]], [warmup])


def make_tx(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients -> the direction of the update at learning rate 1; `apply` multiplies by the schedule.

    The schedule stays outside, so that it follows the step of the train state and an update that is skipped
    does not shift it.
    """

    def decays(params: PyTree) -> Any:
        return _by_path(params, lambda path: re.search(config.no_decay, path) is None)

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        factors = _by_path(updates, lambda path: _multiplier(config.groups, path))
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        muon(adam, config.muon) if config.muon else adam,
        optax.add_decayed_weights(config.weight_decay, mask=decays)
        if config.weight_decay
        else optax.identity(),
        optax.stateless(scale),
    )


def apply(params: PyTree, updates: PyTree, learning_rate: Float[Array, ""]) -> PyTree:
    """`params - learning_rate * updates`, in float32, in the dtype of the parameters."""
    return jax.tree.map(
        lambda p, u: (p - learning_rate * u.astype(jnp.float32)).astype(p.dtype), params, updates
    )


def _multiplier(groups: Groups, path: str) -> float:
    value = next(value for pattern, value in groups if re.search(pattern, path))
    assert value is not None, f"{path} is frozen and has no update"
    return value


def _by_path(tree: PyTree, value: Callable[[str], Any]) -> Any:
    """A tree like `tree` whose arrays are replaced by `value(path)`."""

    def one(path, leaf):
        return leaf.replace(value(path_name(path)))

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_variable)
