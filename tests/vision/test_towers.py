# SPDX-License-Identifier: Apache-2.0
"""CLIP and InternViT: which hidden states come out, at what cost, and in which precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights import randomized
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.stack import REMAT
from vllm2_jax.vision import VISION, build_vision
from vllm2_jax.vision.clip import CLIPConfig
from vllm2_jax.vision.internvit import InternViTConfig

SIZES = {"width": 12, "depth": 5, "heads": 3, "mlp": 20, "image_size": 28}
CONFIGS = {"clip": CLIPConfig(**SIZES), "internvit": InternViTConfig(**SIZES)}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@functools.cache
def build(config, dtype=jnp.float32, **kwargs):
    return randomized(lambda: build_vision(config, dtype=dtype, rngs=Rngs(0), **kwargs))


def pixels(size=28, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (2, size, size, 3)).astype(dtype)


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of every array a program makes, loops included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {getattr(out.aval, "shape", ()) for out in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= shapes_in(inner)
    return found


def test_registry_pairs_sizes_with_towers():
    for name, (config_class, tower_class) in VISION.items():
        assert type(build(CONFIGS[name])) is tower_class
        assert isinstance(CONFIGS[name], config_class)


@pytest.mark.parametrize("layers", [(-2, -3, -2, -1), (3,), (0,), (-6, 1, 5), (2, -2)])
def test_asked_states_equal_those_of_the_full_list(config, layers):
    tower, x = build(config), pixels()
    full = tower.hidden_states(x, tuple(range(6)))
    assert len({float(jnp.abs(state).sum()) for state in full}) == 6  # no two states are equal
    for layer, state in zip(layers, tower.hidden_states(x, layers), strict=True):
        np.testing.assert_allclose(state, full[layer], atol=1e-6)


def test_every_block_counts(config):
    # Entry i of the list is block i applied to entry i - 1.
    tower = build(config)
    full = tower.hidden_states(pixels(), tuple(range(6)))
    for i in range(5):
        block = jax.tree.map(lambda p, i=i: p[i], tower.blocks)
        np.testing.assert_allclose(block(full[i]), full[i + 1], atol=1e-5)


def test_blocks_past_the_last_asked_entry_do_not_run(config):
    good = build(config).hidden_states(pixels(), (-2,))[0]
    graph, params = nnx.split(build(config))
    blocks = jax.tree.map(lambda p: p.at[-1].set(jnp.nan), params["blocks"])
    poisoned = nnx.merge(graph, nnx.State(dict(params) | {"blocks": blocks}))
    np.testing.assert_array_equal(poisoned.hidden_states(pixels(), (-2,))[0], good)
    assert np.isnan(poisoned.hidden_states(pixels(), (-1,))[0]).any()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_only_asked_states_are_kept(remat):
    tower = build(CONFIGS["clip"], remat=remat)
    graph, params = nnx.split(tower)

    def loss(params):
        states = nnx.merge(graph, params).hidden_states(pixels(), (-2, -1))
        return sum((state**2).sum() for state in states)

    state, kept = (2, 5, 12), (2, 2, 5, 12)  # 2 tiles, 4 patches and the class token, width 12
    forward = shapes_in(jax.make_jaxpr(loss)(params).jaxpr)
    assert state in forward and kept in forward and (5, *state) not in forward
    backward = shapes_in(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert (5, *state) in backward  # the input of each block
    assert (5, *kept) not in backward


@pytest.mark.parametrize("layers", [(6,), (-7,), ()])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(ValueError, match="tower with 5 blocks"):
        build(CONFIGS["clip"]).hidden_states(pixels(), layers)


def test_bfloat16_throughout(config):
    tower = build(config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(tower)} == {jnp.dtype("float32")}
    states = tower.hidden_states(pixels(dtype=jnp.bfloat16), (0, -1))
    exact = build(config).hidden_states(pixels(), (0, -1))
    for state, want in zip(states, exact, strict=True):
        assert state.dtype == jnp.bfloat16
        np.testing.assert_allclose(state.astype(np.float32), want, atol=0.05 * np.abs(want).max())


def test_gradients_do_not_depend_on_remat(config):
    def gradient(remat):
        graph, params = nnx.split(build(config, remat=remat))

        def loss(params):
            states = nnx.merge(graph, params).hidden_states(pixels(), (-3, -1))
            return sum((state**3).mean() for state in states)

        # With the emitters that tests/conftest.py turns off both programs are rounded alike.
        return jax.jit(jax.grad(loss), compiler_options={"xla_cpu_use_fusion_emitters": True})(params)

    want = gradient("none")
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(want))
    for remat in set(REMAT) - {"none", "offload"}:  # offloading needs a device with pinned host memory
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(gradient(remat)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_pictures_do_not_see_each_other(config):
    tower, x = build(config), pixels()
    alone = tower.hidden_states(x[1:], (-1,))[0]
    np.testing.assert_allclose(tower.hidden_states(x, (-1,))[0][1:], alone, atol=1e-5)


def test_other_image_sizes():
    with pytest.raises(ValueError, match="tiles of 42 pixels for a tower of 28"):
        build(CONFIGS["clip"]).hidden_states(pixels(42), (-1,))
    (state,) = build(CONFIGS["internvit"]).hidden_states(pixels(42), (-1,))
    assert state.shape == (2, 10, 12)


@pytest.mark.parametrize(
    "config, name, changes",
    [
        (CONFIGS["clip"], "eps", {"eps": 0.5}),
        (CONFIGS["internvit"], "eps", {"eps": 0.5}),
        (CONFIGS["internvit"], "qk_norm", {"qk_norm": False}),
        (CONFIGS["clip"], "heads", {"heads": 2}),
    ],
)
def test_config_fields_are_read(config, name, changes):
    (a,), (b,) = (
        build(c).hidden_states(pixels(), (-1,)) for c in (config, dataclasses.replace(config, **changes))
    )
    assert np.abs(a - b).max() > 1e-4, f"{name} changes nothing"


def test_biases_of_internvit_follow_the_config():
    plain, biased = (
        build(dataclasses.replace(CONFIGS["internvit"], qkv_bias=bias)).blocks.attention
        for bias in (False, True)
    )
    assert plain.q.bias is None and biased.q.bias.shape == (5, 3, 4)
    assert biased.q.bias.axes == ("heads", "head_dim") and biased.out.kernel.axes == (
        "heads",
        "head_dim",
        "embed",
    )


def test_layer_scale_starts_where_the_config_says():
    config = dataclasses.replace(CONFIGS["internvit"], layer_scale=0.25)
    blocks = jax.jit(lambda: build_vision(config, dtype=jnp.float32, rngs=Rngs(0)).blocks.scale1[...])()
    np.testing.assert_array_equal(blocks, np.full((5, 12), 0.25))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 12 is not a multiple of its 5 heads"):
        build(dataclasses.replace(CONFIGS["clip"], heads=5))
