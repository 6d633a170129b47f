# SPDX-License-Identifier: Apache-2.0
"""The decoders over eight devices: how much of them is split, and that the step stays the same."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoders.diffusion.tiny import links, make, targets
from tests.weights import randomized
from vllm2_jax.decoders.diffusion.config import EDIT
from vllm2_jax.decoders.diffusion.unet import UNet
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding.mesh import abstract_mesh, make_mesh
from vllm2_jax.sharding.partition import batch_sharding, placements, shardings
from vllm2_jax.sharding.strategies import STRATEGIES

ROWS = 8


@functools.cache
def editor():
    return randomized(lambda: make(edits=True), std=0.1)


def terms(editor, links, targets):
    found = editor.loss(links, targets, key=jax.random.key(1))
    return sum(value / weight for value, weight in found.values()), found


def step(strategy_name):
    """Loss terms, gradients, and the noise of one step, laid out by a strategy."""
    strategy = STRATEGIES[strategy_name]
    mesh = make_mesh(strategy, jax.devices()[:1] if strategy_name == "single" else jax.devices())
    with jax.set_mesh(mesh), axis_rules(strategy.activation_rules):
        where = shardings(editor(), mesh, strategy.rules)
        placed = jax.device_put(editor(), where)
        batch = jax.device_put((links(ROWS), targets(ROWS, edits=True)), batch_sharding(mesh, strategy.rules))
        # Gradients lie where their parameters do, as in the train step. Left to choose, jax 0.10.2 on a CPU
        # fills a row of the token table's gradient with NaN.
        run = jax.jit(jax.value_and_grad(terms, has_aux=True), out_shardings=(None, where))
        (_, found), grads = run(placed, *batch)
        split = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(placed)}
    return jax.device_get(found), jax.device_get(grads), split


@pytest.fixture(scope="module")
def alone():
    return step("single")


@pytest.mark.parametrize("strategy", [pytest.param("fsdp", marks=pytest.mark.slow), "fsdp_tp"])
def test_same_losses_and_gradients_as_on_one_device(strategy, alone):
    found, grads, devices = step(strategy)
    assert devices == {8}
    for name, value in found.items():
        np.testing.assert_allclose(value, alone[0][name], rtol=1e-4, err_msg=name)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * max(1e-3, np.abs(other).max()))


@pytest.fixture(scope="module")
def full_unet():
    """The trained UNet of editing, as shapes."""
    return jax.eval_shape(lambda: UNet(EDIT.unet, dtype=jnp.float32, rngs=Rngs(0)))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_hardly_anything_of_the_full_unet_is_whole_on_a_chip(strategy, full_unet):
    placed = placements(full_unet, abstract_mesh(STRATEGIES[strategy], 64), STRATEGIES[strategy].rules)
    size = {leaf.path: math.prod(leaf.shape) for leaf in placed}
    assert sum(size.values()) == 859_532_484
    whole = sum(size[leaf.path] for leaf in placed if not any(leaf.spec))
    assert whole < 1e-3 * sum(size.values())
    assert [leaf.path for leaf in placed if leaf.fallbacks] == []


def test_every_parameter_has_names():
    for edits in (False, True):
        model = jax.eval_shape(lambda edits=edits: make(edits=edits))
        mesh = abstract_mesh(STRATEGIES["fsdp_tp"], 8)
        placed = placements(model, mesh, STRATEGIES["fsdp_tp"].rules)
        unnamed = [leaf.path for leaf in placed if "kernel" in leaf.path and not any(leaf.axes)]
        assert unnamed == ["vae/post_quant/kernel", "vae/quant/kernel"]  # 8 x 8 and 4 x 4
