# SPDX-License-Identifier: Apache-2.0
"""The train step: losses as (sum, weight) pairs, gradients of their global means, one update.

Every loss of the model is a sum and a weight; the total is the sum over losses of `sum / max(weight, 1)`,
both counted over the *whole* batch. So the batch may be walked in parts (task by task, or a few groups at a
time): the weights of all parts are counted first, then each part adds its gradient of `sum / weight of the
whole batch`, and the update is the one the whole batch would give. Counting is cheap: weights depend on the
batch alone, so the compiler removes everything else from the first pass.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from vllm2_jax.batch import Batch, Weighted, add, mean
from vllm2_jax.train.optimizer import Schedule, apply
from vllm2_jax.train.state import TrainState

SCHEDULES = ("mixed", "by_task")

Metrics = dict[str, Weighted]


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    learning_rate: Schedule,
    *,
    seed: int,
    schedule: str = "mixed",
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function to compile with `jax.jit(..., donate_argnums=0, out_shardings=(shardings, None))`.

    Args:
      graphdef: of the model, from `state.Plan`.
      tx: `optimizer.make_tx(...)`.
      learning_rate: `optimizer.make_schedule(...)`.
      seed: of everything random inside the step; the key is `fold_in(seed, step)`, so a resumed run repeats.
      schedule: "mixed" runs all tasks in one pass; "by_task" walks them one after the other inside the same
        program, so that only one decoder's activations exist at a time.
      accumulate: walks every part in this many slices of its groups.

    Returns:
      `(state, batch) -> (state, metrics)`. Metrics are (sum, weight) pairs: the losses and metrics of the
      model by name, and "loss", "grad_norm", "learning_rate", "finite" and "tokens" with weight 1. Where the
      loss or the gradient is not finite the update is left out: only `step` moves on.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"step.schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def run(params, part, key):
            return nnx.merge(graphdef, params, state.frozen).losses(part, key=key)

        def loss_of(params):
            losses, metrics = run(params, dict(batch), key)
            return _total(losses, _weights(losses)), losses | metrics

        if schedule == "mixed" and accumulate == 1:
            (loss, outputs), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        else:
            by_task = schedule == "by_task"
            tasks = [{task: rows} for task, rows in batch.items()] if by_task else [dict(batch)]
            parts = [slices(part, accumulate) for part in tasks]
            loss, outputs, grads = _gradients(run, state.params, parts, key)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        rate = learning_rate(state.step)
        params = apply(state.params, updates, rate)
        new = dataclasses.replace(state, params=params, opt_state=opt_state)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        scalars = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "finite": finite,
            "tokens": sum((rows.inputs.segments > 0).sum() for rows in batch.values()),
        }
        return dataclasses.replace(new, step=state.step + 1), outputs | {
            name: _one(x) for name, x in scalars.items()
        }

    return train_step


def _one(x: Array) -> Weighted:
    return x.astype(jnp.float32), jnp.ones((), jnp.float32)


def _weights(losses: Metrics) -> dict[str, Float[Array, ""]]:
    return {name: jax.lax.stop_gradient(weight) for name, (_, weight) in losses.items()}


def _total(losses: Metrics, weights: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    terms = [mean((value, weights[name])) for name, (value, _) in losses.items()]
    return sum(terms, jnp.zeros(()))


def slices(part: Batch, count: int) -> tuple[list[Array], Any]:
    """`[G, ...] -> [count, G / count, ...]`, neighbours apart, so that no group leaves its batch shard.

    Flattened (leaves, treedef): with one more axis they are no batch, and the batch's shape checks say so.
    """

    def split(x: Array) -> Array:
        if x.shape[0] % count:
            raise ValueError(f"{x.shape[0]} groups do not split into accumulate={count} slices")
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    leaves, treedef = jax.tree.flatten(part)
    return [split(leaf) for leaf in leaves], treedef


def _sum(a: Metrics, b: Metrics) -> Metrics:
    """Adds by name; a name that only one side has is kept."""
    return {name: add(a[name], b[name]) if name in a and name in b else (a | b)[name] for name in a | b}


def count_weights(
    run: Callable, parts: list[tuple[list[Array], Any]], key: Array
) -> dict[str, Float[Array, ""]]:
    """Weight of every loss over all parts."""
    total: dict[str, Float[Array, ""]] = {}
    for leaves, treedef in parts:

        def body(_, piece, treedef=treedef):
            return None, _weights(run(jax.tree.unflatten(treedef, piece), key)[0])

        _, weights = jax.lax.scan(body, None, leaves)
        for name, weight in weights.items():
            total[name] = total.get(name, 0) + weight.sum()
    return total


def _gradients(
    run: Callable, params: PyTree, parts: list[tuple[list[Array], Any]], key: Array
) -> tuple[Float[Array, ""], Metrics, PyTree]:
    """Total loss, all losses and metrics, and the gradient, added up over parts and their slices."""
    weights = count_weights(functools.partial(run, params), parts, key)

    def loss_of(params, piece, key):
        losses, metrics = run(params, piece, key)
        return _total(losses, weights), losses | metrics

    loss = jnp.zeros(())
    outputs: Metrics = {}
    grads = jax.tree.map(jnp.zeros_like, params)
    for number, (leaves, treedef) in enumerate(parts):

        def body(carry, xs, treedef=treedef):
            piece, key = xs
            value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
            (loss, more), new = value_and_grad(params, jax.tree.unflatten(treedef, piece), key)
            return jax.tree.map(jnp.add, carry, (loss, new)), more

        keys = jax.random.split(jax.random.fold_in(key, number), leaves[0].shape[0])
        # A scan, also over one slice: the next part cannot start, and claim memory, before this one is added.
        (loss, grads), stacked = jax.lax.scan(body, (loss, grads), (leaves, keys))
        outputs = _sum(outputs, jax.tree.map(lambda x: x.sum(0), stacked))
    return loss, outputs, grads
