# SPDX-License-Identifier: Apache-2.0
"""What can be compiled without arrays: the train step, generation, the losses of one decoder.

Each is a pure function with abstract arguments that carry their shardings. So one thing is lowered for a
slice, traced to count its operations, and called by nobody.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from launch.abstract import abstract_batch, abstract_prompts, plain
from launch.answer import AnswerConfig, generation
from launch.build import Config, Run, build_run, rebuild
from vllm2_jax.batch import Batch, mean
from vllm2_jax.decoders import DECODERS
from vllm2_jax.llm.sampling import Sampler
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import batch_sharding
from vllm2_jax.sharding.strategies import MeshAxes
from vllm2_jax.train.flops import count_flops
from vllm2_jax.train.residuals import stored

Weights = dict[str, tuple[Any, Mapping[str, MeshAxes]]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A function to compile.

    Attributes:
      title: what it is.
      facts: what its shapes are, for a report.
      function: pure; called with `arguments`.
      arguments: abstract; those of a mesh carry shardings.
      options: of `jax.jit`.
      weights: name -> (abstract weights and moments among the arguments, the rules that split them).
      loss: `(what is differentiated, *others) -> scalar` and its arguments, for what the backward pass finds
        stored; None where there is no backward pass.
    """

    title: str
    facts: Mapping[str, str]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    weights: Weights
    loss: tuple[Callable[..., jax.Array], tuple[Any, ...]] | None


def make_job(program: str, config: Config, run: Run) -> Job:
    """The job of a name: "train", "generate", or a decoder's.

    Raises:
      ValueError: an unknown name, or a decoder that no task of the mixture calls.
    """
    if program == "train":
        return train_job(config, run)
    if program == "generate":
        return generate_job(config, run)
    if program in DECODERS:
        return decoder_job(program, config, run)
    raise ValueError(f"unknown program {program!r}; choose one of train, generate, {', '.join(DECODERS)}")


def lower(job: Job, run: Run) -> Any:
    """The job traced and lowered for the run's mesh, as the loops run it."""
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        return jax.jit(job.function, **job.options).lower(*job.arguments)


def needed_flops(program: str, config: Config) -> float:
    """Operations that the model needs for one run of a program: nothing computed twice, no slices.

    Attention counts the pairs that `nn.attention` looks at: of a causal row 5/8.
    """
    config = plain(config)
    job = make_job(program, config, build_run(config))
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.arguments)
    return count_flops(job.function, *bare)


def kept(job: Job, run: Run) -> dict[str, list[jax.ShapeDtypeStruct]]:
    """What the backward pass finds stored, by part of the model; shapes over all devices.

    The whole batch in one pass; slices and tasks one after the other store their part of it.
    """
    if job.loss is None:
        return {}
    loss, arguments = job.loss
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        return stored(loss, *arguments)


def train_job(config: Config, run: Run) -> Job:
    """One step of training: all tasks of the mixture, the update included."""
    batch = abstract_batch(config, run)
    state, rules = run.plan.abstract, run.strategy.rules

    def loss(params: Any, frozen: Any, batch: Batch) -> jax.Array:
        losses, _ = nnx.merge(run.plan.graphdef, params, frozen).losses(batch, key=jax.random.key(0))
        return sum((mean(value) for value in losses.values()), jnp.zeros(()))

    weights: Weights = {
        "params": (state.params, rules),
        "frozen": (state.frozen, rules),
        "opt_state": (state.opt_state, run.strategy.optimizer_rules),
    }
    return Job(
        title="train step",
        facts={
            **_rows(config, batch),
            "schedule": f"{config.step.schedule}, accumulate {config.step.accumulate}",
        },
        function=run.train_step,
        arguments=(state, batch),
        options={"donate_argnums": 0, "out_shardings": (run.plan.shardings, None)},
        weights=weights,
        loss=(loss, (state.params, state.frozen, batch)),
    )


def decoder_job(name: str, config: Config, run: Run) -> Job:
    """Losses and gradients of one decoder, from the hidden states of the tasks that call it.

    It starts where the language model ends: links are read, and the gradient goes back to the states.

    Raises:
      ValueError: no task of the mixture calls this decoder.
    """
    batch = {task: rows for task, rows in abstract_batch(config, run).items() if name in rows.targets}
    if not batch:
        raise ValueError(f"no task of the mixture calls the decoder {name!r}; it has {_tasks(config)}")
    sharding = batch_sharding(run.mesh, run.strategy.rules)
    width, dtype = run.model.llm.width, jnp.dtype(config.dtype)
    hidden = {
        task: jax.ShapeDtypeStruct((*rows.labels.shape, width), dtype, sharding=sharding)
        for task, rows in batch.items()
    }
    params, frozen = (_of_decoder(getattr(run.plan.abstract, part), name) for part in ("params", "frozen"))

    def loss(own: Any, frozen_own: Any, hidden: Any, batch: Batch) -> jax.Array:
        whole = run.plan.abstract
        # The other parts of the model are shapes: nothing here reads them.
        filled = (_replace(whole.params, name, own), _replace(whole.frozen, name, frozen_own))
        model = nnx.merge(run.plan.graphdef, *filled)
        terms = model.decoder_losses(name, hidden, batch, key=jax.random.key(0))
        return sum((mean(value) for value in terms.values()), jnp.zeros(()))

    def function(own: Any, frozen_own: Any, hidden: Any, batch: Batch) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 2))(own, frozen_own, hidden, batch)

    arguments = (params, frozen, hidden, batch)
    where = (_of_decoder(run.plan.shardings.params, name), dict.fromkeys(hidden, sharding))
    return Job(
        title=f"losses and gradients of {name}",
        facts=_rows(config, batch),
        function=function,
        arguments=arguments,
        options={"out_shardings": (None, where)},
        weights={"params": (params, run.strategy.rules), "frozen": (frozen, run.strategy.rules)},
        loss=(
            lambda pair, *others: loss(pair[0], others[0], pair[1], others[1]),
            ((params, hidden), frozen, batch),
        ),
    )


def _of_decoder(state: Any, name: str) -> Any:
    """A decoder's part of a state; empty if it has none there."""
    return state["decoders"][name] if "decoders" in state and name in state["decoders"] else {}


def _replace(state: Any, name: str, own: Any) -> Any:
    if "decoders" not in state or name not in state["decoders"]:
        return state
    decoders = {**dict(state["decoders"].items()), name: own}
    return nnx.State({**dict(state.items()), "decoders": decoders})


def generate_job(config: Config, run: Run) -> Job:
    """Answers to `data.groups` prompts of `data.length` columns, with `eval.max_new` new ones.

    All weights are stored in `config.frozen_dtype`. The loop ends when all rows are done, which no compiler
    knows: reports count one turn of it, one column of every row, after the prompts.
    """
    inputs = abstract_prompts(config, run)
    dtype = jnp.dtype(config.frozen_dtype)

    def stored_as(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kind = dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=x.sharding)

    model = jax.tree.map(stored_as, rebuild(run, run.plan.abstract))
    answer = generation(run, AnswerConfig(max_new=config.eval.max_new))

    def function(model: Any, inputs: Any) -> Any:
        return answer(model, inputs, jax.random.key(config.seed), Sampler())

    return Job(
        title="generation",
        facts={
            "prompts": f"{config.data.groups} of {config.data.length} columns, {inputs.tiles.shape[1]} tiles",
            "new columns": f"{config.eval.max_new}; counted: the prompts and one turn of the loop",
        },
        function=function,
        arguments=(model, inputs),
        options={},
        weights={"weights": (nnx.state(model), run.strategy.rules)},
        loss=None,
    )


def _rows(config: Config, batch: Batch) -> dict[str, str]:
    columns: dict[int, list[str]] = {}
    for name, task in batch.items():
        count, length = task.labels.shape[1:]
        columns.setdefault(length, []).append(name if count == 1 else f"{name} x {count}")
    rows = sum(task.labels.shape[1] for task in batch.values())
    lengths = sorted(columns.items(), reverse=True)
    return {
        "batch": f"{config.data.groups} groups of {rows} rows",
        "columns of a row": "; ".join(f"{length}: {', '.join(names)}" for length, names in lengths),
    }


def _tasks(config: Config) -> str:
    called = {task: entry.get("decoder", "") for task, entry in config.data.mixture.items()}
    return ", ".join(f"{task} ({decoder or 'no decoder'})" for task, decoder in called.items())
