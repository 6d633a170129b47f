# SPDX-License-Identifier: Apache-2.0
"""The loss in chunks: the same numbers as all logits at once, and no work for columns without a label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vllm2_jax.batch import IGNORE
from vllm2_jax.llm.loss import total_and_rows
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.costs import work
from vllm2_jax.sharding.program import parse

ROWS, LENGTH, WIDTH, VOCAB = 4, 12, 16, 38


def made(seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((ROWS, LENGTH, WIDTH)), jnp.float32)
    head = nnx.Param(jnp.asarray(rng.standard_normal((WIDTH, VOCAB)), jnp.float32))
    return hidden, head, rng.integers(0, VOCAB, (ROWS, LENGTH))


def some(labels):
    """A row with all labels, one with none, one with its end and one with scattered ones."""
    labels[1] = labels[2, :9] = labels[3, ::3] = IGNORE
    return jnp.asarray(labels)


def loss(hidden, head, labels, chunk):
    total, rows = total_and_rows(hidden, labels, head, chunk=chunk)
    return 1.7 * total, rows


gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=3)


@pytest.mark.parametrize("labelled", ["all", "some", "none"])
@pytest.mark.parametrize("chunk", [5, 99])
def test_chunks_give_the_same_numbers(labelled, chunk):
    hidden, head, labels = made()
    labels = {
        "all": jnp.asarray(labels),
        "some": some(labels),
        "none": jnp.full(labels.shape, IGNORE),
    }[labelled]
    want, got = (gradients(hidden, head, labels, size) for size in (0, chunk))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    (total, (of_rows, correct, weight)), _ = got
    assert weight.tolist() == (labels[:, 1:] != IGNORE).sum(axis=1).tolist()
    np.testing.assert_allclose(total, 1.7 * of_rows.sum(), rtol=1e-6)
    assert (correct <= weight).all()
    again, _ = jax.jit(loss, static_argnums=3)(hidden, head, labels, chunk)  # without gradients
    np.testing.assert_allclose(again, total, rtol=1e-6)


def test_columns_without_label_are_not_looked_at():
    hidden, head, labels = made()
    labels = np.where(np.arange(LENGTH) >= LENGTH - 6, labels, IGNORE)  # 6 of each row: two chunks of 3
    reads = np.roll(labels != IGNORE, -1, axis=1)
    poisoned = jnp.where(jnp.asarray(reads)[..., None], hidden, jnp.nan)
    (_, rows), (of_hidden, of_head) = gradients(poisoned, head, jnp.asarray(labels), 3)
    assert all(jnp.isfinite(x).all() for x in (*rows, of_head[...]))
    assert (of_hidden[~reads] == 0).all() and (np.abs(of_hidden[reads]).max(axis=-1) > 0).all()


def test_rows_have_no_gradient():
    hidden, head, labels = made()
    for chunk in (0, 4):
        of_rows = jax.grad(lambda x, chunk=chunk: loss(x, head, jnp.asarray(labels), chunk)[1][0].sum())(
            hidden
        )
        assert (of_rows == 0).all()


def test_only_the_gradients_that_are_asked_for_are_formed():
    hidden, head, labels = made()

    def products(*wanted):
        run = jax.jit(jax.value_and_grad(loss, wanted, has_aux=True) if wanted else loss, static_argnums=3)
        found, _ = work(parse(run.lower(hidden, head, jnp.asarray(labels), 3).compile().as_text()))
        return sum(one.times * one.flops for one in found) / (2 * ROWS * LENGTH * WIDTH * VOCAB)

    assert [products(), products(0), products(0, 1)] == [1, 2, 3]  # logits never computed twice


def test_devices_skip_what_they_like():
    """On 2 x 2 devices, two without a label: no collective between those that differ in work."""
    hidden, head, labels = made()
    labels[:2] = IGNORE
    labels = some(labels)
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, split = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P("fsdp", "tensor"))
    placed = jax.device_put((hidden, head, labels), (rows, split, rows))
    want = gradients(hidden, head, labels, 0)
    with jax.set_mesh(mesh), axis_rules({"batch": "fsdp"}):
        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=3)
        program = run.lower(*placed, 3).compile()
        got = program(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    found = collectives(parse(program.as_text()), dict(mesh.shape))
    assert {one.axes for one in found if one.times > 1} == {("tensor",)}
    assert sum(one.kind == "all-gather" for one in found if "fsdp" in one.axes) == 1  # of the head
