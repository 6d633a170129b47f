# SPDX-License-Identifier: Apache-2.0
"""Adapters: nothing at first, the same as merged kernels later, dropout with a key only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.llm import small
from vllm2_jax.llm.lora import LoRA, LoRAConfig
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs

IDS = small.tokens(2, 9)
CONFIG = dataclasses.replace(small.CONFIG, lora=LoRAConfig(rank=3, alpha=5.0, dropout=0.2))


def test_the_default_targets_are_the_official_ones():
    paths, _ = flatten_paths(small.model(CONFIG))
    adapted = {path.split("/lora/")[0] for path in paths if "/lora/" in path}
    assert {path.split("/")[-1] for path in adapted} == {"q", "k", "v", "out", "up", "down"}
    assert all(f"{path}/lora/{leaf}" in paths for path in adapted for leaf in "ab")


def test_a_new_adapter_adds_nothing():
    config = LoRAConfig(rank=64)
    new = LoRA(config, (6, 4), (40,), ("heads", "head_dim", "mlp"), dtype=jnp.float32, rngs=Rngs(3))
    assert (new(jax.random.normal(jax.random.key(0), (2, 3, 6, 4))) == 0).all()
    a = np.asarray(new.a[...])
    assert a.shape == (6, 4, 64) and new.a.axes == ("heads", "head_dim", "lora")
    # kaiming_uniform(a=sqrt(5)) of PyTorch: uniform between -1 and 1, over the root of the inputs
    assert 0.95 < np.abs(a).max() * np.sqrt(24) <= 1 and np.abs(a.mean()) < 0.02


def test_merging_keeps_the_model_and_leaves_the_original_alone():
    llm = small.model(CONFIG)
    before = small.hidden(llm, IDS)
    merged = llm.merged()
    assert merged.config == small.CONFIG and not any("lora" in path for path in flatten_paths(merged)[0])
    np.testing.assert_allclose(small.hidden(merged, IDS), before, atol=2e-5)
    np.testing.assert_array_equal(small.hidden(llm, IDS), before)
    base = llm.layers.attention.out
    for i in range(CONFIG.depth):
        a, b = base.lora.a[...][i].reshape(-1, 3), base.lora.b[...][i]
        want = base.kernel[...][i].reshape(a.shape[0], -1) + 5.0 / 3 * a @ b
        np.testing.assert_allclose(
            merged.layers.attention.out.kernel[...][i].reshape(want.shape), want, atol=1e-5
        )


def test_dropout_is_drawn_by_layer_and_by_key():
    llm = small.model(CONFIG)
    quiet = small.hidden(llm, IDS)
    noisy = [small.hidden(llm, IDS, key=jax.random.key(n)) for n in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-3 and np.abs(noisy[0] - quiet).max() > 1e-3
    adapter = llm.layers.attention.q.lora
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], adapter) for i in range(2)]
    x = jax.random.normal(jax.random.key(9), (4000, 1, small.CONFIG.width))
    mean = np.asarray(layers[0](x, jax.random.key(4)) - layers[0](x)).mean((0, 1))
    spread = np.asarray(layers[0](x)).std((0, 1))
    assert (np.abs(mean) < 0.05 * spread).all()  # inputs are scaled up by what is dropped


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="q_proj"):
        LoRAConfig(targets="q_proj|v_proj")
