# SPDX-License-Identifier: Apache-2.0
"""The transformer: what a column may depend on, the cache, remat, precision, and the next-token loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.llm import small
from vllm2_jax.batch import IGNORE
from vllm2_jax.llm.llama import LlamaConfig
from vllm2_jax.llm.loss import total_and_rows
from vllm2_jax.nn.stack import REMAT

IDS = small.tokens(2, 12)


@pytest.fixture(scope="module")
def llm():
    return small.model()


def test_by_hand(llm):
    """One row against the formulas, written as loops over layers and heads."""
    c, hd = small.CONFIG, small.CONFIG.head_dim
    ids = np.asarray(IDS[0])
    angle = np.arange(len(ids))[:, None] * c.rope.theta ** (-np.arange(hd // 2) / (hd // 2))

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_eps) * scale

    def turn(x):
        z = (x[:, : hd // 2] + 1j * x[:, hd // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    x = np.asarray(llm.embed[...], np.float64)[ids]
    for i in range(c.depth):
        layer = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), llm.layers)
        a, m = layer.attention, layer.mlp
        h = norm(x, layer.input_norm.scale[...])
        for head in range(c.heads):
            group = head // (c.heads // c.kv_heads)
            q = turn(h @ a.q.kernel[...][:, head] + a.q.bias[...][head])
            k = turn(h @ a.k.kernel[...][:, group] + a.k.bias[...][group])
            v = h @ a.v.kernel[...][:, group] + a.v.bias[...][group]
            scores = np.where(np.tril(np.ones((len(ids),) * 2)) > 0, q @ k.T / np.sqrt(hd), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + (weights / weights.sum(-1, keepdims=True)) @ v @ a.out.kernel[...][head]
        x = x + a.out.bias[...]
        h = norm(x, layer.post_norm.scale[...])
        gate = h @ m.gate.kernel[...]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ m.up.kernel[...])) @ m.down.kernel[...]
    want = norm(x, np.asarray(llm.norm.scale[...], np.float64))
    np.testing.assert_allclose(small.hidden(llm, IDS)[0], want, atol=2e-5)
    np.testing.assert_allclose(llm.logits(jnp.float32(want)), want @ np.asarray(llm.head[...]), atol=2e-5)


def test_padding_and_packing_change_nothing(llm):
    """Two rows of different length: alone, padded on the right, and packed into one row."""
    a, b = IDS[:1, :5], IDS[1:, :7]
    alone = small.hidden(llm, a), small.hidden(llm, b)
    ids = jnp.concatenate([a, b], axis=1)
    packed = small.hidden(
        llm,
        ids,
        positions=jnp.array([[*range(5), *range(7)]]),
        segments=jnp.array([[1] * 5 + [2] * 7]),
    )
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)
    segments = jnp.array([[1] * 5 + [0] * 7, [1] * 7 + [0] * 5])
    padded = small.hidden(llm, IDS, segments=segments)
    np.testing.assert_allclose(padded[:1, :5], alone[0], atol=1e-5)
    np.testing.assert_allclose(padded[1:, :7], alone[1], atol=1e-5)


def test_cached_steps_equal_one_pass(llm):
    """A prompt of 5 columns, then 3 columns at once, then one by one."""
    x, positions = llm.embed_tokens(IDS), jnp.broadcast_to(jnp.arange(12), IDS.shape)
    ones = jnp.ones((2, 5), jnp.int32)
    prefill, step = jax.jit(type(llm).prefill, static_argnames="columns"), jax.jit(type(llm).step)
    hidden, caches = prefill(llm, x[:, :5], positions=positions[:, :5], segments=ones, columns=12)
    parts = [hidden]
    for start, stop in ((5, 8), (8, 9), (9, 10), (10, 11), (11, 12)):
        visible = jnp.arange(12) <= jnp.arange(start, stop)[:, None]
        hidden, caches = step(
            llm,
            x[:, start:stop],
            positions=positions[:, start:stop],
            caches=caches,
            column=jnp.int32(start),
            visible=jnp.broadcast_to(visible, (2, *visible.shape)),
        )
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), small.hidden(llm, IDS), atol=1e-5)


def loss(llm, chunk=0):
    return total_and_rows(small.hidden(llm, IDS), IDS, llm.head, chunk=chunk)[0]


def test_remat_gives_the_same_gradients(llm):
    want = jax.jit(jax.grad(loss))(llm)
    for name in REMAT.keys() - {"none", "offload"}:  # a CPU has no second memory to offload to
        got = jax.jit(jax.grad(loss))(small.model(remat=name))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_splash_gives_the_same_loss(llm):
    np.testing.assert_allclose(loss(small.model(attention="splash")), loss(llm), rtol=1e-5)


def test_bfloat16_activations_float32_parameters_and_logits():
    llm = small.model(dtype=jnp.bfloat16, remat="full")
    hidden = small.hidden(llm, IDS)
    assert hidden.dtype == jnp.bfloat16 and llm.logits(hidden).dtype == jnp.float32
    gradient = jax.jit(jax.grad(loss))(llm)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def labels():
    ids = np.array(IDS)
    ids[0, 3:6] = ids[1, -1] = IGNORE
    return jnp.asarray(ids)


def test_loss_by_hand(llm):
    hidden = small.hidden(llm, IDS)
    logits, want = np.asarray(llm.logits(hidden), np.float64), np.asarray(labels())
    total = right = count = 0
    for b, t in np.argwhere(want[:, 1:] != IGNORE):
        scores, label = logits[b, t], want[b, t + 1]
        total += np.log(np.exp(scores - scores[label]).sum())
        right += scores.argmax() == label
        count += 1
    loss, rows = total_and_rows(hidden, labels(), llm.head)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    of_rows, correct, weight = (row.sum() for row in rows)
    np.testing.assert_allclose(of_rows, total, rtol=1e-5)
    assert (weight, correct) == (count, right) and count == 22 - 4


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_give_the_same_loss_accuracy_and_gradients(llm, chunk):
    hidden = small.hidden(llm, IDS)
    easy = jnp.where(jnp.arange(12) % 3 == 0, llm.logits(hidden).argmax(-1), labels()[:, 0:1])
    easy = jnp.pad(easy[:, :-1], ((0, 0), (1, 0)))  # a third of the labels are the best tokens

    def values(hidden, head, chunk):
        total, (_, correct, weight) = total_and_rows(hidden, easy, head, chunk=chunk)
        return total, (weight.sum(), correct.sum())

    run = jax.jit(jax.value_and_grad(values, (0, 1), has_aux=True), static_argnums=2)
    (want, counts), want_gradients = run(hidden, llm.head, 0)
    (got, again), got_gradients = run(hidden, llm.head, chunk)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert counts == again and counts[1] >= 7
    for a, b in zip(jax.tree.leaves(got_gradients), jax.tree.leaves(want_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_no_nan(llm):
    def nothing(hidden):
        return total_and_rows(hidden, jnp.full(IDS.shape, IGNORE), llm.head, chunk=5)[0]

    value, gradient = jax.value_and_grad(nothing)(small.hidden(llm, IDS))
    assert value == 0 and (gradient == 0).all()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of the kv_heads"):
        LlamaConfig(heads=32, kv_heads=5)
    with pytest.raises(ValueError, match="remat"):
        small.hidden(small.model(remat="some"), IDS)
    assert dataclasses.replace(small.CONFIG, width=12, heads=2).head_dim == 6
