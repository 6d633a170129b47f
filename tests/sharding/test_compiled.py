# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the sharded step: no collective for routing, and a program for TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.build import Run, build_run
from tests.distributed.tiny import host_batch, tiny_config
from vllm2_jax import links
from vllm2_jax.batch import TaskRows, split_rows
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.mesh import find_strategy, make_mesh
from vllm2_jax.sharding.partition import batch_sharding
from vllm2_jax.sharding.program import parse
from vllm2_jax.train.step import count_weights, slices


def routed(hidden: jax.Array, rows: dict[str, TaskRows]) -> list[jax.Array]:
    """Hidden states to each task's rows and link columns, as the model does it; one number a row."""
    counts = [task.labels.shape[1] for task in rows.values()]
    parts = split_rows(hidden, counts)
    return [
        jnp.square(links.read(part, task).states).sum((1, 2, 3))
        for part, task in zip(parts, rows.values(), strict=True)
    ]


def test_routing_to_decoders_adds_no_collective():
    strategy = find_strategy("fsdp_tp")
    mesh = make_mesh(strategy)
    sharding = batch_sharding(mesh, strategy.rules)
    groups, length, width = 8, 96, 64
    template = next(iter(host_batch().values()))

    def rows(count: int) -> TaskRows:
        found = {
            "labels": ((groups, count, length), jnp.int32),
            "link_position": ((groups, count, 3, 4), jnp.int32),
            "link_valid": ((groups, count, 3), bool),
        }
        shapes = {name: jax.ShapeDtypeStruct(*spec, sharding=sharding) for name, spec in found.items()}
        return TaskRows(inputs=abstract(template.inputs, sharding), targets={}, **shapes)

    tasks = {"chat": rows(3), "det": rows(2), "pose": rows(1)}
    hidden = jax.ShapeDtypeStruct((groups, 6, length, width), jnp.float32, sharding=sharding)

    def backward(hidden, tasks):
        states, pull = jax.vjp(lambda x: routed(x, tasks), hidden)
        return states, pull([jnp.ones_like(state) for state in states])

    with jax.set_mesh(mesh):
        text = jax.jit(backward).lower(hidden, tasks).compile().as_text()
    assert collectives(parse(text), dict(mesh.shape)) == []


def test_fsdp_splits_parameters_and_data_parallel_does_not():
    for name, expected in (("dp", set()), ("fsdp", {"all-gather", "all-to-all"})):
        run = build_run(tiny_config(**{"sharding.strategy": name}))
        found = collectives(parse(compiled(run).as_text()), dict(run.mesh.shape))
        assert {one.kind for one in found} == {"all-reduce", *expected}
        # No activation is ever whole: what is gathered are weights.
        largest = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.plan.abstract.params))
        assert all(one.bytes <= largest for one in found if one.kind == "all-gather")
        # Rows of the embeddings, whose width is split, are exchanged for rows of the batch; and back.
        exchanged = [one for one in found if one.kind == "all-to-all"]
        assert {one.part for one in exchanged} <= {"llm"} and len(exchanged) <= 2


@pytest.mark.slow
def test_devices_that_split_columns_add_up_no_activations():
    activation, layers = 2 * 3 * 96 * 64 * 4, 2  # bytes of two groups, which two devices share
    for name, expected in (("fsdp_tp", {1, 2, 3}), ("fsdp_seq", set())):
        run = build_run(tiny_config(**{"sharding.strategy": name, "remat.llm": "projections"}))
        found = collectives(parse(compiled(run).as_text()), dict(run.mesh.shape))
        sums = [one for one in found if one.kind == "all-reduce" and one.axes == ("tensor",)]
        in_layers = [one.bytes for one in sums if one.part == "llm" and one.times == layers]
        counts = {size // activation for size in in_layers if size % activation == 0}
        assert counts == expected, name


def abstract(tree, sharding):
    """Shapes instead of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compiled(run: Run):
    """The train step for the run's mesh, from shapes alone."""
    batch = abstract(host_batch(), batch_sharding(run.mesh, run.strategy.rules))
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        step = jax.jit(run.train_step, donate_argnums=0, out_shardings=(run.plan.shardings, None))
        return step.lower(run.plan.abstract, batch).compile()


def test_counting_weights_runs_no_model():
    run = build_run(tiny_config(**{"sharding.strategy": "single"}))

    def count(state, batch):
        def losses(part, key):
            return nnx.merge(run.plan.graphdef, state.params, state.frozen).losses(part, key=key)

        return count_weights(losses, [slices(batch, 2)], jax.random.key(0))

    batch = abstract(host_batch(), batch_sharding(run.mesh, run.strategy.rules))
    program = jax.jit(count).lower(run.plan.abstract, batch).compile()
    assert " dot(" not in program.as_text()  # no matrix product is left
    assert program.cost_analysis()["flops"] < 1e5


# One of its tasks is compiled in tests/launch/test_compile.py.
@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_tiny_step_compiles_for_tpu():
    run = build_run(tiny_config(**{"sharding.devices": "v5e:2x2", "dtype": "bfloat16"}))
    assert run.mesh.size == 4
    program = compiled(run)
    memory = program.memory_analysis()
    state = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(run.plan.abstract)
    )
    assert memory.alias_size_in_bytes >= state  # the new state takes the place of the donated one
    found = collectives(parse(program.as_text()), dict(run.mesh.shape))
    assert "all-gather" in {one.kind for one in found}
