# SPDX-License-Identifier: Apache-2.0
"""Matching against scipy, with padding, ties and numbers that are none; on a mesh without collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment

from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.ops.matching import class_cost, l1_cost, match
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.program import parse

RULES = {"batch": ("data", "fsdp")}


def draw(rows, queries, places, seed=0):
    rng = np.random.default_rng(seed)
    cost = rng.normal(0, 20, (rows, queries, places)).astype(np.float32)
    return cost, rng.random((rows, places)) < 0.6


def matched(cost, valid):
    return jax.jit(match)(jnp.asarray(cost), jnp.asarray(valid))


def check(cost, valid, assigned):
    """Valid targets cost what scipy's optimum costs; all queries of a row differ."""
    for row, ok, query in zip(np.asarray(cost), valid, np.asarray(assigned), strict=True):
        assert len(set(query)) == len(query)
        i, j = linear_sum_assignment(row[:, ok])
        np.testing.assert_allclose(row[query[ok], ok.nonzero()[0]].sum(), row[:, ok][i, j].sum(), rtol=1e-5)


@pytest.mark.parametrize(("queries", "places"), [(30, 7), (7, 7), (5, 1)])
def test_costs_as_little_as_scipys(queries, places):
    cost, valid = draw(6, queries, places)
    valid[0], valid[1] = True, False
    check(cost, valid, matched(cost, valid))


def test_padding_holds_garbage():
    cost, valid = draw(4, 12, 6)
    want = matched(cost, valid)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        dirty = np.where(valid[:, None], cost, np.float32(garbage))
        np.testing.assert_array_equal(matched(dirty, valid), want)


def test_ends_where_costs_are_equal_or_no_numbers():
    valid = np.ones((3, 4), bool)
    for value in (0.0, np.nan, np.inf, -np.inf):
        cost = np.full((3, 9, 4), value, np.float32)
        cost[0, 5, 2] = -1
        for query in np.asarray(matched(cost, valid)):
            assert len(set(query)) == 4
            assert 0 <= query.min() <= query.max() < 9


def test_has_no_gradient_and_no_room_for_more_targets_than_queries():
    cost, valid = map(jnp.asarray, draw(2, 8, 3))
    gradient = jax.grad(lambda c: jnp.take_along_axis(c, match(c, valid)[:, None], 1).sum())(cost)
    assert set(np.unique(gradient)) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="capacity"):
        match(cost.swapaxes(1, 2), jnp.ones((2, 8), bool))


@pytest.mark.parametrize("sets", [None, 3])
def test_devices_do_not_wait_for_each_other(sets):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    cost, valid = draw(8 * (sets or 1), 12, 5)
    if sets:
        cost = cost.reshape(sets, 8, 12, 5)
        valid = valid[:8]
    matcher = jax.vmap(match, (0, None)) if sets else match
    spec = PartitionSpec(*([None] if sets else []), ("data", "fsdp"))
    with jax.set_mesh(mesh), axis_rules(RULES):
        placed = jax.device_put(cost, NamedSharding(mesh, spec))
        rows = jax.device_put(valid, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        program = jax.jit(matcher).lower(placed, rows).compile()
        assert collectives(parse(program.as_text()), dict(mesh.shape)) == []
        got = program(placed, rows)
        uneven = matched(cost.reshape(-1, 12, 5)[:3], valid[:3])  # 3 rows for 8 devices
    for found, costs in zip(np.asarray(got).reshape(-1, 8, 5), cost.reshape(-1, 8, 12, 5), strict=True):
        check(costs, valid, found)
    check(cost.reshape(-1, 12, 5)[:3], valid[:3], uneven)


def test_costs_are_those_of_the_formulas():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(0, 3, (2, 4, 5)).astype(np.float32), rng.integers(0, 5, (2, 3))
    logits[0, 0, labels[0, 0]] = -np.inf
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    gain = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
    want = np.stack([row[:, label] for row, label in zip(gain, labels, strict=True)])
    np.testing.assert_allclose(class_cost(jnp.asarray(logits), jnp.asarray(labels)), want, rtol=1e-4)
    low = jnp.asarray(logits, jnp.bfloat16)  # is taken as it is, and counted in float32
    exact = class_cost(low.astype(jnp.float32), jnp.asarray(labels))
    np.testing.assert_array_equal(class_cost(low, jnp.asarray(labels)), exact)
    a, b = rng.random((2, 4, 4), np.float32), rng.random((2, 3, 4), np.float32)
    want = np.abs(a[:, :, None] - b[:, None]).sum(-1)
    np.testing.assert_allclose(l1_cost(jnp.asarray(a), jnp.asarray(b)), want, rtol=1e-6)
