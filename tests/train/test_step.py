# SPDX-License-Identifier: Apache-2.0
"""The train step: strategies, schedules and accumulation agree; what is not finite is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.train.small import make_batch, make_small
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.nn.layers import param
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding.mesh import find_strategy, make_mesh
from vllm2_jax.sharding.partition import global_batch, path_name
from vllm2_jax.sharding.strategies import STRATEGIES
from vllm2_jax.train.optimizer import OptimizerConfig, make_schedule, make_tx
from vllm2_jax.train.state import create, plan
from vllm2_jax.train.step import make_train_step

GROUPS = [("^embed$", None), ("^box/", 2.0), (".*", 1.0)]
CONFIG = OptimizerConfig(groups=GROUPS, steps=10, peak=1e-2, warmup_steps=0, weight_decay=0.1)


def train(strategy_name: str, batches: list, config: OptimizerConfig = CONFIG, **options):
    """Parameters and metrics after one step a batch."""
    strategy = find_strategy(strategy_name)
    mesh = make_mesh(strategy)
    with jax.set_mesh(mesh), axis_rules(strategy.activation_rules):
        run = plan(make_small, make_tx(config), GROUPS, mesh, strategy)
        state = create(run)
        step = jax.jit(
            make_train_step(run.graphdef, run.tx, make_schedule(config), seed=0, **options),
            donate_argnums=0,
            out_shardings=(run.shardings, None),
        )
        metrics = []
        for batch in batches:
            state, more = step(state, global_batch(mesh, strategy.rules, batch))
            metrics.append(jax.device_get(more))
        assert step._cache_size() == 1  # the state comes out as it went in: no second program
    return jax.device_get(state), metrics


def assert_same(a, b, tolerance: float = 1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def reference():
    return train("single", [make_batch(0), make_batch(1)])


def test_zero1_splits_the_moments_alone():
    strategy = find_strategy("zero1")
    mesh = make_mesh(strategy)
    state = create(plan(make_small, make_tx(CONFIG), GROUPS, mesh, strategy))
    for tree, spec, count in ((state.params, P(), 1), (state.opt_state, P("data"), 2)):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        kernels = [leaf for path, leaf in leaves if "up/kernel" in path_name(path)]
        assert len(kernels) == count
        for kernel in kernels:
            assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "single"])
def test_every_strategy_equals_single(name, reference):
    assert_same(train(name, [make_batch(0), make_batch(1)]), reference)


def test_muon_of_split_kernels(reference):
    config = dataclasses.replace(CONFIG, muon="^(up|down)/kernel$")
    batches = [make_batch(0), make_batch(1)]
    single = train("single", batches, config)
    assert_same(train("fsdp_tp", batches, config), single)
    assert np.abs(single[0].params["up"]["kernel"] - reference[0].params["up"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"schedule": "by_task"}, {"accumulate": 4}, {"schedule": "by_task", "accumulate": 2}],
    ids=str,
)
def test_parts_give_the_update_of_the_whole(options, reference):
    assert_same(train("single", [make_batch(0), make_batch(1)], **options), reference)


def test_accumulation_over_shards(reference):
    batches = [make_batch(0, groups=16)]
    assert_same(train("fsdp", batches, accumulate=2), train("single", batches))


def test_frozen_leaves_stay_and_others_move(reference):
    state, metrics = reference
    fresh = jax.device_get(make_small())
    np.testing.assert_array_equal(state.frozen["embed"][...], fresh.embed[...])
    assert np.abs(state.params["box"]["kernel"][...] - fresh.box.kernel[...]).max() > 1e-3
    assert metrics[0]["tokens"] == (8 * 3 * 6, 1)
    rates = [one["learning_rate"] for one in metrics]
    assert rates == [(pytest.approx(float(make_schedule(CONFIG)(step))), 1) for step in (0, 1)]
    assert metrics[1]["loss"][0] == pytest.approx(
        sum(metrics[1][name][0] / metrics[1][name][1] for name in ("lm", "box/l2")), rel=1e-5
    )


class Number(nnx.Module):
    """A model of one number, 1 at first: its loss is any function of it; each task tells what it drew."""

    def __init__(self, loss):
        self.loss, self.number = loss, param(nnx.initializers.ones, Rngs(0), (1,), (None,))

    def losses(self, batch, *, key):
        """The loss, and for each task a random number and its square, which parts of a batch add up."""
        drawn = jax.random.uniform(key)
        return {"any": (self.loss(self.number[0]), jnp.ones(()))}, dict.fromkeys(batch, (drawn, drawn**2))


def step_of(loss, *, seed: int = 0, **options):
    """A fresh state of `Number`, and its compiled step."""
    strategy = find_strategy("single")
    groups = [(".*", 1.0)]
    config = dataclasses.replace(CONFIG, groups=groups)
    run = plan(lambda: Number(loss), make_tx(config), groups, make_mesh(strategy), strategy)
    step = make_train_step(run.graphdef, run.tx, make_schedule(config), seed=seed, **options)
    return create(run), jax.jit(step)


@pytest.mark.parametrize("options", [{}, {"schedule": "by_task", "accumulate": 2}], ids=str)
def test_every_step_draws_anew(options):
    def drawn(step, number):
        metrics = step(dataclasses.replace(state, step=jnp.int32(number)), batch)[1]
        return [tuple(map(float, metrics[task])) for task in batch]

    batch = make_batch(0)
    state, step = step_of(jnp.square, **options)
    first, second, again = (drawn(step, number) for number in (0, 1, 0))
    assert first == again
    _, other = step_of(jnp.square, seed=1, **options)
    chat, det = first
    for new in (second, drawn(other, 0)):
        assert chat != new[0] and det != new[1]
    if options:  # and so does every part of a step: the two slices of each task differ
        assert chat != det and all(2 * squares > 1.001 * total**2 for total, squares in first)


@pytest.mark.parametrize(
    ("loss", "value"),
    [(lambda x: jnp.sqrt(x - 1), 0.0), (lambda x: x + jnp.inf, jnp.inf)],
    ids=["gradient", "loss"],
)
def test_one_of_loss_and_gradient_that_is_not_finite_is_enough(loss, value):
    state, step = step_of(loss)
    new, metrics = step(state, make_batch(0))
    assert metrics["loss"][0] == value and metrics["finite"] == (0, 1)
    assert np.isfinite(metrics["grad_norm"][0]) == (value == jnp.inf)
    assert_same((new.params, new.opt_state), (state.params, state.opt_state), 0)
    assert new.step == 1


def test_tokens_of_packed_rows_are_those_that_are_no_padding():
    batch = make_batch(0)
    batch["chat"].inputs.segments[:, 0] = [1, 1, 2, 3, 0, 0]
    state, step = step_of(jnp.square)
    assert step(state, batch)[1]["tokens"] == (8 * (3 * 6 - 2), 1)


@pytest.mark.parametrize("options", [{}, {"schedule": "by_task"}], ids=str)
def test_update_that_is_not_finite_is_left_out(options):
    bad = make_batch(1)
    bad["det"].targets["box"]["y"][0, 0, 0] = np.nan
    bad["det"].targets["box"]["valid"][:] = True
    good, _ = train("single", [make_batch(0)], **options)
    state, metrics = train("single", [make_batch(0), bad], **options)
    assert [m["finite"][0] for m in metrics] == [1.0, 0.0]
    assert_same((state.params, state.opt_state), (good.params, good.opt_state), 0)
    assert state.step == 2


def test_frozen_leaves_are_stored_as_asked(reference):
    strategy = find_strategy("single")
    mesh = make_mesh(strategy)
    with jax.set_mesh(mesh):
        run = plan(make_small, make_tx(CONFIG), GROUPS, mesh, strategy, frozen_dtype=jnp.bfloat16)
        kinds = {}

        def load(model):  # what is loaded is never there in two precisions
            kinds.update(frozen=model.embed.dtype, trained=model.up.kernel.dtype)
            return model

        state = create(run, load)
        step = jax.jit(make_train_step(run.graphdef, run.tx, make_schedule(CONFIG), seed=0))
        _, metrics = step(state, make_batch(0))
    assert kinds == {"frozen": jnp.bfloat16, "trained": jnp.float32}
    assert state.frozen["embed"][...].dtype == jnp.bfloat16
    assert state.params["up"]["kernel"][...].dtype == jnp.float32
    assert metrics["loss"][0] == pytest.approx(float(reference[1][0]["loss"][0]), rel=1e-2)


def test_unknown_schedule_is_named():
    graphdef = nnx.graphdef(make_small())
    with pytest.raises(ValueError, match=r"by_tsk.*mixed, by_task"):
        make_train_step(graphdef, make_tx(CONFIG), make_schedule(CONFIG), seed=0, schedule="by_tsk")


def test_what_weights_lack_is_drawn():
    strategy = find_strategy("fsdp")
    mesh = make_mesh(strategy)
    drawn = jax.device_get(make_small())

    def load(model):
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))
        model.up.kernel = model.up.kernel.replace(
            jax.device_put(jnp.full(model.up.kernel.shape, 3.0), model.up.kernel.get_raw_value().sharding)
        )
        return model

    with jax.set_mesh(mesh):
        run = plan(make_small, make_tx(CONFIG), GROUPS, mesh, strategy)
        state = create(run, load)
    np.testing.assert_array_equal(state.params["up"]["kernel"][...], 3.0)
    np.testing.assert_array_equal(state.params["down"]["kernel"][...], drawn.down.kernel[...])
    np.testing.assert_array_equal(state.frozen["embed"][...], drawn.embed[...])
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(run.shardings), strict=True):
        assert leaf.sharding == wanted
