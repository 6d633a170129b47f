# SPDX-License-Identifier: Apache-2.0
"""The conversion engine: total both ways, and one error that lists everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vllm2_jax.convert.rules import Alias, ConversionError, Ignore, Plan, Rule, export, load, prefixed
from vllm2_jax.convert.transforms import CONV, TRANSPOSE, chain, join_heads, split, split_heads, squeeze
from vllm2_jax.nn.layers import LayerNorm, linear
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.stack import stack


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = linear(3, 5, ("embed", "mlp"), dtype=jnp.float32, rngs=rngs)


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.blocks = stack(Block, 4, rngs)
        self.stages = nnx.List([LayerNorm(2, eps=1e-5, rngs=rngs) for _ in range(2)])
        self.q = nnx.Param(jnp.zeros((6, 2, 3)))
        self.k = nnx.Param(jnp.zeros((6, 2, 3)))


TABLE = [
    Rule(r"layers\.(\d+)\.fc\.weight", "blocks/up/kernel", TRANSPOSE),
    Rule(r"layers\.(\d+)\.fc\.bias", "blocks/up/bias"),
    Rule(r"stages\.(\d+)\.weight", "stages/{1}/scale"),
    Rule(r"stages\.(\d+)\.(bias)", "stages/{1}/{2}"),
    Rule(r"qk\.weight", ("q", "k"), split(2, split_heads(2))),
    Ignore(r".*position_ids", "a buffer"),
    Alias(r"copies\.([1-9])\.(weight|bias)", "stages.0.{2}", copies=range(1, 3)),
]


def official(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {f"layers.{i}.fc.weight": (5, 3) for i in range(4)} | {
        f"layers.{i}.fc.bias": (5,) for i in range(4)
    }
    shapes |= {f"stages.{i}.{n}": (2,) for i in range(2) for n in ("weight", "bias")} | {"qk.weight": (12, 6)}
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    aliases = {f"copies.{i}.{n}": tensors[f"stages.0.{n}"] for i in (1, 2) for n in ("weight", "bias")}
    return tensors | aliases


@pytest.fixture(scope="module")
def abstract():
    return jax.eval_shape(lambda: Tiny(Rngs(0)))


def test_load_stacks_transposes_and_splits(abstract):
    tensors = official()
    model = load(tensors | {"x.position_ids": np.arange(3)}, TABLE, abstract)
    np.testing.assert_array_equal(model.blocks.up.kernel[2], tensors["layers.2.fc.weight"].T)
    np.testing.assert_array_equal(model.stages[1].bias[...], tensors["stages.1.bias"])
    heads = tensors["qk.weight"][6:].reshape(2, 3, 6)  # the second block of rows, two heads of width 3
    np.testing.assert_array_equal(model.k[:, 1], heads[1].T)
    assert isinstance(model, Tiny) and model.blocks.up.kernel.axes == ("embed", "mlp")


def test_round_trip_is_exact_also_for_states(abstract):
    tensors = official()
    model = load(tensors, TABLE, abstract)
    for tree in (model, nnx.state(model)):
        back = export(tree, TABLE)
        assert back.keys() == tensors.keys()
        for key in tensors:
            np.testing.assert_array_equal(back[key], tensors[key])


def test_dtype_of_each_leaf_or_one_for_all(abstract):
    half = {key: value.astype(np.float16) for key, value in official().items()}
    kept, cast = load(half, TABLE, abstract), load(half, TABLE, abstract, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype("bfloat16")}


def test_one_error_lists_everything(abstract):
    tensors = official()
    del tensors["layers.3.fc.bias"]
    tensors["layers.4.fc.bias"] = np.zeros(5)
    tensors["extra"] = np.zeros(1)
    tensors["layers.0.fc.weight"] = np.zeros((5, 4))
    tensors["qk.weight"] = np.zeros((11, 6))
    table = [*TABLE, Ignore(r"stages\.1\.weight", "a second row for it")]
    with pytest.raises(ConversionError) as caught:
        load(tensors, table, abstract)
    lines = str(caught.value).splitlines()[1:]
    for start in (
        "missing: layers.3.fc.bias, for blocks/up/bias",
        "unknown: layers.4.fc.bias (5,) has no leaf",
        "unknown: extra (1,) matches no row",
        "misshapen: layers.0.fc.weight (5, 4) gives (4, 5)",
        "misshapen: qk.weight (11, 6)",
        r"ambiguous: stages.1.weight matches rule stages\.(\d+)\.weight and ignore",
    ):
        assert sum(line.strip().startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 6


def test_leaves_without_a_row_or_with_two(abstract):
    leaves = {path: leaf.shape for path, leaf in flatten_paths(abstract)[0].items()}
    with pytest.raises(ConversionError, match=r"not filled once: blocks/up/kernel \(4, 3, 5\), by no row"):
        Plan.make(TABLE[1:], leaves)
    with pytest.raises(ConversionError, match=r"not filled once: stages/0/bias .* by stages.*, other"):
        Plan.make([*TABLE, Rule(r"other\.(\d+)", "stages/{1}/bias")], leaves)
    with pytest.raises(ConversionError, match=r"used twice: qk\.weight"):
        Plan.make([*TABLE, Rule(r"qk\.weight", "q", TRANSPOSE)], leaves)


def test_aliases_must_agree_and_may_stand_in(abstract):
    tensors = official()
    del tensors["stages.0.weight"], tensors["copies.1.weight"]
    model = load(tensors, TABLE, abstract)
    np.testing.assert_array_equal(model.stages[0].scale[...], tensors["copies.2.weight"])
    tensors["copies.1.bias"] = tensors["copies.1.bias"] + 1
    with pytest.raises(ConversionError, match=r"differing: copies\.1\.bias and stages\.0\.bias"):
        load(tensors, TABLE, abstract)


def test_prefix_moves_a_table_into_a_bigger_model():
    class Whole(nnx.Module):
        def __init__(self):
            self.part = Tiny(Rngs(0))

    tensors = {f"vis.{key}": value for key, value in official().items()}
    model = load(tensors, prefixed(TABLE, "vis.", "part/"), jax.eval_shape(Whole))
    np.testing.assert_array_equal(model.part.blocks.up.bias[1], tensors["vis.layers.1.fc.bias"])


@pytest.mark.parametrize(
    "pattern, path, reason",
    [
        (r"a.b", "x", "read backwards"),
        (r"(?:a|b)", "x", "plain groups"),
        (r"a\.(q|k)", "x", "must be"),
        (r"(\d+)\.(\d+)", "x", "leave out the same group"),
        (r"a\.(\d+)", ("x", "y/{1}"), "leave out the same group"),
        (r"a", "x/{1}", "does not have"),
    ],
)
def test_rows_that_cannot_run_backwards_are_refused(pattern, path, reason):
    with pytest.raises(ValueError, match=reason):
        Rule(pattern, path)


@pytest.mark.parametrize(
    "transform, shape",
    [(CONV, (5, 2, 3, 4)), (chain(squeeze(1), TRANSPOSE), (1, 3, 2)), (join_heads(2), (5, 6))],
)
def test_transforms_invert(transform, shape):
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(transform.inverse(transform.forward(x)), x)


def test_lazy_tensors_are_read_leaf_by_leaf_and_placed_by_shardings(abstract):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))

    class Stored:
        """A tensor on disk: its shape is known, its numbers are read when asked."""

        def __init__(self, key, array):
            self.key, self.array, self.shape = key, array, array.shape

        def __array__(self, dtype=None, copy=None):
            reads.append(self.key)
            return self.array

    def split_first(leaf):
        axis = "x" if leaf.shape[0] % 2 == 0 else None
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    reads: list[str] = []
    tensors = {key: value for key, value in official().items() if not key.startswith("copies")}
    lazy = {key: Stored(key, value) for key, value in tensors.items()}
    model = load(lazy, TABLE, jax.tree.map(split_first, abstract))
    assert sorted(reads) == sorted([*tensors, "qk.weight"])  # it fills two leaves, and is read for each
    kernel = model.blocks.up.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 3, 5)}
    np.testing.assert_array_equal(kernel[3], tensors["layers.3.fc.weight"].T)
