# SPDX-License-Identifier: Apache-2.0
"""The train state, and how it comes to lie on a mesh: abstract, then sharded, then loaded, then split."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vllm2_jax.sharding.partition import placements, shardings, with_shardings
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.train.optimizer import Groups, multipliers, trained

_PROGRAMS = 4  # that draw random weights, compiled at the same time


@struct.dataclass
class TrainState:
    """All that a training run is, besides its code, its config and its data iterator.

    The same structure holds arrays, their shapes or their shardings, so the fields are typed as pytrees.

    Attributes:
      step: updates done so far, skipped ones included; an int32 scalar.
      params: what is trained.
      frozen: what is not: no gradient, no moments; may be stored in bfloat16.
      opt_state: of the optax transformation, laid out like `params`.
    """

    step: PyTree
    params: PyTree
    frozen: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a train state but its numbers.

    Attributes:
      make_model: builds the model; pure, so that tracing it costs no memory.
      graphdef: what `nnx.merge(graphdef, params, frozen)` needs to give the model back.
      abstract: a `TrainState` of `ShapeDtypeStruct`s that carry their shardings.
      shardings: a `TrainState` of shardings, for `out_shardings`.
      fallbacks: array axes that a rule wanted split and that do not divide, as "path: axis: size over mesh
        axis".
      tx, groups: as given to `plan`.
    """

    make_model: Callable[[], nnx.Module]
    graphdef: nnx.GraphDef
    abstract: TrainState
    shardings: TrainState
    fallbacks: tuple[str, ...]
    tx: optax.GradientTransformation
    groups: Groups


def plan(
    make_model: Callable[[], nnx.Module],
    tx: optax.GradientTransformation,
    groups: Groups,
    mesh: Mesh,
    strategy: Strategy,
    *,
    frozen_dtype: DTypeLike | None = None,
) -> Plan:
    """Works out shapes and shardings of a run; allocates nothing.

    Args:
      make_model: builds the model, `lambda: VisionLLMv2(config, rngs=Rngs(seed))`.
      tx: `optimizer.make_tx(...)`.
      groups: what is trained, see `optimizer.Groups`.
      mesh, strategy: where things go; `mesh` is made from `strategy`.
      frozen_dtype: dtype frozen floats are stored in; None keeps float32.

    Raises:
      ValueError: the table of groups does not fit the model, or a parameter's axes do not fit the rules.
    """
    model = jax.eval_shape(make_model)
    multipliers(model, groups)  # raises unless the table fits
    graphdef, *states = nnx.split(model, trained(groups), ...)
    params, frozen = states
    frozen = jax.eval_shape(lambda tree: _cast(tree, frozen_dtype), frozen)
    opt_state = jax.eval_shape(tx.init, params)
    rules = strategy.rules
    where = TrainState(
        step=NamedSharding(mesh, P()),
        params=shardings(params, mesh, rules),
        frozen=shardings(frozen, mesh, rules),
        opt_state=shardings(opt_state, mesh, strategy.optimizer_rules),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    abstract = TrainState(step=step, params=params, frozen=frozen, opt_state=opt_state)
    return Plan(
        make_model=make_model,
        graphdef=graphdef,
        abstract=with_shardings(abstract, where),
        shardings=where,
        fallbacks=tuple(
            f"{leaf.path}: {reason}" for leaf in placements(model, mesh, rules) for reason in leaf.fallbacks
        ),
        tx=tx,
        groups=groups,
    )


def random_model(plan: Plan) -> Any:
    """What `plan.make_model` makes, with random weights, every array born on the devices that keep it.

    Frozen parts are stored as in training.
    """
    return _draw(plan, _abstract_model(plan))


def _abstract_model(plan: Plan) -> Any:
    return nnx.merge(plan.graphdef, plan.abstract.params, plan.abstract.frozen)


def _draw(plan: Plan, model: nnx.Module) -> Any:
    """`model` with random weights where it is abstract. What has numbers already is not drawn."""
    leaves, tree = jax.tree.flatten(model)
    shardings = [leaf.sharding for leaf in leaves]
    abstract = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if not abstract:
        return model

    def draw(chosen: list[int]) -> list[jax.Array]:
        made = jax.tree.leaves(plan.make_model())
        return [made[i].astype(leaves[i].dtype) for i in chosen]

    # On CPU LLVM would optimise the random bits of every parameter for 25 s, to draw them once (tiny model).
    on_cpu = shardings[0].mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    # Hundreds of draws in one program are compiled one after the other.
    parts = [part for start in range(_PROGRAMS) if (part := abstract[start::_PROGRAMS])]
    lowered = [
        jax.jit(
            functools.partial(draw, part),
            out_shardings=[shardings[i] for i in part],
            compiler_options=options,
        ).lower()
        for part in parts
    ]
    with concurrent.futures.ThreadPoolExecutor(_PROGRAMS) as pool:
        programs = list(pool.map(lambda program: program.compile(), lowered))
    for part, program in zip(parts, programs, strict=True):
        for i, array in zip(part, program(), strict=True):
            leaves[i] = array
    return jax.tree.unflatten(tree, leaves)


def create(plan: Plan, load: Callable[[nnx.Module], nnx.Module] | None = None) -> TrainState:
    """A fresh train state, every array born on the devices that keep it.

    Args:
      plan: of the run.
      load: gives numbers to parameters of the sharded, abstract model; those it leaves abstract are drawn.
    """
    model = random_model(plan) if load is None else _draw(plan, load(_abstract_model(plan)))
    _, *states = nnx.split(model, trained(plan.groups), ...)
    params, frozen = states
    del states
    del model
    # Without out_shardings the moments would all land on one device.
    opt_state = jax.jit(plan.tx.init, out_shardings=plan.shardings.opt_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), plan.shardings.step)
    return TrainState(step=step, params=params, frozen=frozen, opt_state=opt_state)


def _cast(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """Floats of `tree` in another dtype; None leaves all as they are."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
