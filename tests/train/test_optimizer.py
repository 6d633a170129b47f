# SPDX-License-Identifier: Apache-2.0
"""The table of groups, the schedules, AdamW against its formula, and Muon by what it promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.train.small import make_small
from vllm2_jax.train.muon import muon
from vllm2_jax.train.optimizer import OptimizerConfig, apply, make_schedule, make_tx, multipliers, trained


def test_first_pattern_decides():
    table = multipliers(make_small(), [(r"bias$", 0.5), ("^embed$", None), (".*", 1.0)])
    assert table["up/bias"] == 0.5
    assert table["up/kernel"] == 1.0
    assert table["embed"] is None


def test_misfits_are_listed_together():
    groups = [("^up/", 1.0), ("^upp/", 1.0), ("^up/bias", 1.0), ("^(down|norm)/", None)]
    with pytest.raises(ValueError) as error:
        multipliers(make_small(), groups)
    text = str(error.value)
    assert "no pattern matches: box/bias, box/kernel, embed" in text
    assert "decide no parameter: ^upp/, ^up/bias" in text
    with pytest.raises(ValueError, match="freezes every parameter"):
        multipliers(make_small(), [(".*", None)])


def test_split_by_table():
    _, params, frozen = nnx.split(make_small(), trained([("^(embed|norm)", None), (".*", 1.0)]), ...)
    assert set(params) == {"up", "down", "box"}
    assert set(frozen) == {"embed", "norm"}


def huggingface_cosine(step: int, steps: int, warmup: int) -> float:
    """`get_cosine_schedule_with_warmup` of transformers."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def test_schedules():
    config = OptimizerConfig(groups=(), steps=101, peak=2.0)
    rate = make_schedule(config)
    for step in (0, 1, 3, 4, 5, 50, 100):
        assert rate(jnp.int32(step)) == pytest.approx(2 * huggingface_cosine(step, 101, 4), abs=1e-6)
    linear = make_schedule(OptimizerConfig((), steps=10, peak=1.0, schedule="linear", warmup_steps=5))
    assert [float(linear(jnp.int32(step))) for step in (0, 5, 10)] == pytest.approx([0, 1, 0])
    constant = make_schedule(OptimizerConfig((), steps=10, peak=1.0, schedule="constant", warmup_steps=0))
    assert float(constant(jnp.int32(0))) == 1.0
    with pytest.raises(ValueError, match="'cosin'; choose one of cosine, linear, constant"):
        make_schedule(OptimizerConfig((), steps=10, peak=1.0, schedule="cosin"))
    with pytest.raises(ValueError, match="leave none of the 10 steps"):
        make_schedule(OptimizerConfig((), steps=10, peak=1.0, warmup_steps=10))


def test_adamw_by_its_formula():
    groups = [("^box/", 0.1), (".*", 1.0)]
    config = OptimizerConfig(groups=groups, steps=1, peak=1.0, weight_decay=0.3, clip_norm=0.5)
    params = nnx.state(make_small())
    tx = make_tx(config)
    opt_state = tx.init(params)
    rng = np.random.default_rng(0)
    moments = {}
    want = {path: np.asarray(x) for path, x in nnx.to_flat_state(params)}
    for count in (1, 2):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        flat = {path: np.asarray(x) for path, x in nnx.to_flat_state(grads)}
        clip = min(1.0, 0.5 / math.sqrt(sum(float((x**2).sum()) for x in flat.values())))
        updates, opt_state = tx.update(grads, opt_state, params)
        params = apply(params, updates, jnp.float32(0.01))
        for path, grad in flat.items():
            m, v = moments.get(path, (0, 0))
            m, v = 0.9 * m + 0.1 * clip * grad, 0.999 * v + 0.001 * (clip * grad) ** 2
            moments[path] = m, v
            step = (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
            decay = 0.0 if path[-1] in ("bias", "scale") else 0.3
            rate = 0.01 * (0.1 if path[0] == "box" else 1.0)
            want[path] = want[path] - rate * (step + decay * want[path])
    for path, x in nnx.to_flat_state(params):
        np.testing.assert_allclose(x, want[path], atol=1e-6, err_msg="/".join(path))


def test_muon_moves_all_directions_alike():
    params = nnx.state(make_small())
    groups = [("^up/", 0.5), (".*", 1.0)]
    mixed = make_tx(OptimizerConfig(groups, steps=1, peak=1.0, clip_norm=0.0, muon="^(up|down)/kernel$"))
    adam = make_tx(OptimizerConfig(groups, steps=1, peak=1.0, clip_norm=0.0))
    rng = np.random.default_rng(0)
    # Gradients that are nearly of rank one, which Adam's updates stay.
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2 + 1.0, jnp.float32), params)
    (by_muon, _), (by_adam, _) = (tx.update(grads, tx.init(params), params) for tx in (mixed, adam))
    for layer, factor in (("up", 0.5), ("down", 1.0)):
        update, grad = (np.asarray(tree[layer]["kernel"][...]) for tree in (by_muon, grads))
        assert (update * grad).sum() > 0  # `apply` subtracts it
        sizes = np.linalg.svd(update)[1] / (factor * 0.2 * math.sqrt(32))  # the longer side of 16 x 32
        assert 0.5 < sizes.min() < sizes.max() < 1.3
    for path, update in nnx.to_flat_state(by_adam):
        if path not in (("up", "kernel"), ("down", "kernel")):
            np.testing.assert_array_equal(dict(nnx.to_flat_state(by_muon))[path], update)
    sizes = np.linalg.svd(np.asarray(by_adam["up"]["kernel"][...]))[1]
    assert sizes[1] < 0.1 * sizes[0]


def test_muon_by_its_formula():
    shapes = {"kernel": ((8, 12), ("embed", "mlp")), "bias": ((12,), ("mlp",))}
    config = OptimizerConfig([("kernel", 0.5), (".", 1.0)], steps=1, peak=1.0, clip_norm=0.5, muon="kernel")
    tx, rng = make_tx(config), np.random.default_rng(0)
    state, momentum = None, 0.0
    for size in (10.0, 0.01, 0.02):  # only the first gradient is clipped, else nothing of it could be seen
        drawn = {name: rng.normal(size=shape) * size for name, (shape, _) in shapes.items()}
        grads = {
            name: nnx.Param(jnp.asarray(drawn[name], jnp.float32), axes=axes)
            for name, (_, axes) in shapes.items()
        }
        updates, state = tx.update(grads, tx.init(grads) if state is None else state, grads)
        norm = math.sqrt(sum((x**2).sum() for x in drawn.values()))
        grad = drawn["kernel"] * min(1.0, 0.5 / norm)
        momentum = grad + 0.95 * momentum
        left, sizes, right = np.linalg.svd(grad + 0.95 * momentum, full_matrices=False)  # Nesterov's
        sizes /= np.linalg.norm(sizes)
        for _ in range(5):
            sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
        want = 0.5 * 0.2 * math.sqrt(12) * (left * sizes) @ right
        np.testing.assert_allclose(updates["kernel"][...], want, atol=1e-4)


def test_muon_takes_heads_as_one_matrix():
    rng = np.random.default_rng(0)
    shapes = {
        "q": ((3, 8, 2, 4), ("embed", "heads", "head_dim")),
        "out": ((3, 2, 4, 8), ("heads", "head_dim", "embed")),
        "conv": ((3, 2, 2, 2, 8), (None, None, None, "embed")),
    }
    grads = {
        name: nnx.Param(jnp.asarray(rng.normal(size=shape), jnp.float32), axes=axes)
        for name, (shape, axes) in shapes.items()
    }
    tx = muon(optax.identity(), ".")
    updates, _ = tx.update(grads, tx.init(grads), grads)
    plain = optax.contrib.scale_by_muon()
    for name, update in updates.items():
        for layer in range(3):
            matrix = grads[name][layer].reshape(8, 8)
            want = plain.update(matrix, plain.init(matrix))[0] * 0.2 * math.sqrt(8)
            np.testing.assert_allclose(update[layer].reshape(8, 8), want, atol=1e-5, err_msg=name)


def test_muon_for_matrices_only():
    params = nnx.state(make_small())
    for pattern, error in (("^norm/", "norm/scale, which is no matrix"), ("kernels", "finds no parameter")):
        with pytest.raises(ValueError, match=error):
            make_tx(OptimizerConfig([(".*", 1.0)], steps=1, peak=1.0, muon=pattern)).init(params)
