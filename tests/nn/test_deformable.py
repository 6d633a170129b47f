# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling against a loop over samples and cells, and the attention around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.nn.deformable import DeformableAttention, sample, star
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.ops import sample_rows, sample_taps
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.program import parse

SHAPES = ((5, 7), (3, 4), (1, 2))
CELLS = sum(h * w for h, w in SHAPES)


def draw(rows=2, queries=9, heads=3, channels=4, points=2, seed=0):
    """Values, locations (a third of them outside of the map) and weights."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(rows, CELLS, heads, channels))
    locations = rng.uniform(-0.4, 1.4, (rows, queries, heads, len(SHAPES), points, 2))
    weights = rng.normal(size=locations.shape[:-1])
    return [jnp.asarray(x, jnp.float32) for x in (value, locations, weights)]


def looped(value, locations, weights):
    """One sample and one cell at a time, in float64."""
    value, locations, weights = (np.asarray(x, np.float64) for x in (value, locations, weights))
    rows, queries, heads, levels, points, _ = locations.shape
    out = np.zeros((rows, queries, heads, value.shape[-1]))
    starts = np.cumsum([0] + [h * w for h, w in SHAPES])
    for b, q, m, level, p in np.ndindex(rows, queries, heads, levels, points):
        h, w = SHAPES[level]
        x, y = locations[b, q, m, level, p] * (w, h) - 0.5
        for row in range(max(0, int(np.floor(y))), min(h, int(np.floor(y)) + 2)):
            for column in range(max(0, int(np.floor(x))), min(w, int(np.floor(x)) + 2)):
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                cell = value[b, starts[level] + row * w + column, m]
                out[b, q, m] += weights[b, q, m, level, p] * share * cell
    return out.reshape(rows, queries, -1)


def flat(implementation, **options):
    def run(value, *where):
        return implementation(value, SHAPES, *where, **options).reshape(*where[0].shape[:2], -1)

    return run


# What `sample` chooses among, each in one chunk and in many; levels are read by row or by product.
WAYS = {
    "sample": (lambda value, *where: sample(value, SHAPES, *where), {}),
    "taps": (flat(sample_taps.sample_taps), {}),
    "taps, chunks": (flat(sample_taps.sample_taps), {"PAIRS": 16, "STORED": 8}),
    "taps, parts": (flat(sample_taps.sample_taps), {"PAIRS": 1, "STORED": 1}),
    "product": (flat(sample_rows.sample_rows), {}),
    "rows": (flat(sample_rows.sample_rows, few=0), {}),
    "both, chunks": (flat(sample_rows.sample_rows, few=12), {"CHUNK": 1}),
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    run, constants = WAYS[request.param]
    for name, value in constants.items():
        monkeypatch.setattr(sample_taps if hasattr(sample_taps, name) else sample_rows, name, value)
    return jax.jit(lambda *arrays: run(*arrays))


def test_equals_the_loop(way):
    arrays = draw(queries=131)
    np.testing.assert_allclose(way(*arrays), looped(*arrays), atol=2e-5)


def test_a_point_on_a_cell_reads_that_cell():
    value, _, _ = draw(rows=1, heads=1)
    h, w = SHAPES[0]
    y, x = np.mgrid[:h, :w]
    at = np.stack([(x + 0.5) / w, (y + 0.5) / h], -1).reshape(1, -1, 1, 1, 1, 2)
    locations = jnp.asarray(np.broadcast_to(at, (1, h * w, 1, 3, 1, 2)), jnp.float32)
    weights = jnp.zeros((1, h * w, 1, 3, 1)).at[:, :, :, 0].set(1)
    got = sample(value, SHAPES, locations, weights)
    np.testing.assert_allclose(got[0], value[0, : h * w, 0], atol=1e-5)


def test_gradients_are_the_slopes_of_the_loop(way):
    arrays = draw(rows=1, queries=3, heads=2, channels=3)
    # Away from the cells' centres, where the slope jumps.
    inside = np.asarray(arrays[1]) * np.array([[w, h] for h, w in SHAPES])[:, None] - 0.5
    inside = np.floor(inside) + np.clip(inside - np.floor(inside), 0.1, 0.9)
    arrays[1] = jnp.asarray((inside + 0.5) / np.array([[w, h] for h, w in SHAPES])[:, None], jnp.float32)
    away = np.random.default_rng(5).normal(size=(1, 3, 6))

    def loss(*arrays):
        return (way(*arrays) * jnp.asarray(away, jnp.float32)).sum()

    gradients = jax.grad(loss, (0, 1, 2))(*arrays)
    rng, step = np.random.default_rng(7), 1e-4
    for i, gradient in enumerate(gradients):
        for _ in range(4):
            direction = rng.normal(size=gradient.shape)
            ends = []
            for sign in (1, -1):
                moved = [np.asarray(x, np.float64) for x in arrays]
                moved[i] = moved[i] + sign * step * direction
                ends.append((looped(*moved) * away).sum())
            want = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), want, rtol=2e-3, atol=2e-3)


def test_slopes_on_a_centre_are_those_to_its_right(way):
    """All points start on centres, so the choice matters."""
    value, _, weights = draw(rows=1, queries=1, heads=1, channels=1, points=1)
    weights = jnp.zeros_like(weights).at[0, 0, 0, 0].set(1)
    h, w = SHAPES[0]
    cells = np.asarray(value[0, : h * w, 0, 0]).reshape(h, w)
    for row, column in ((2, 3), (0, 0), (h - 1, w - 1)):
        at = jnp.array([(column + 0.5) / w, (row + 0.5) / h], jnp.float32)
        locations = jnp.broadcast_to(at, (1, 1, 1, 3, 1, 2))
        slope = jax.grad(lambda x: way(value, x, weights).sum())(locations)[0, 0, 0, 0, 0]
        right = cells[row, column + 1] if column + 1 < w else 0
        below = cells[row + 1, column] if row + 1 < h else 0
        want = (right - cells[row, column]) * w, (below - cells[row, column]) * h
        np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-4)


def test_low_precision_values_are_summed_in_float32(way, request):
    value, locations, weights = draw()
    low = value.astype(jnp.bfloat16)
    got = way(low, locations, weights)
    assert got.dtype == jnp.float32
    # A matrix product rounds the shares as well.
    rounded = any(name in request.node.name for name in ("product", "both"))
    want = looped(low.astype(jnp.float32), locations, weights)
    np.testing.assert_allclose(got, want, atol=5e-2 if rounded else 2e-5)
    gradient = jax.grad(lambda v: way(v, locations, weights).sum())(low)
    assert gradient.dtype == jnp.bfloat16


def test_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(sample_rows, "CHUNK", 1)  # 128 queries at a time
    value, weights = jnp.ones((1, 4, 1, 1), jnp.bfloat16), jnp.ones((1, 38_400, 1, 1, 1))
    locations = jnp.full((*weights.shape, 2), 0.5)

    def total(value):
        return sample_rows.sample_rows(value, ((2, 2),), locations, weights).sum()

    # A quarter of all queries; a sum in bfloat16 gets stuck at 8,192.
    np.testing.assert_array_equal(jax.grad(total)(value).astype(jnp.float32).ravel(), 9600)


def test_lost_locations_stay_lost_and_harm_no_other_row(way):
    value, locations, weights = draw()
    got = way(value, locations.at[0, 0].set(jnp.nan), weights)
    assert np.isnan(got[0, 0]).all()
    np.testing.assert_allclose(got[1], way(value, locations, weights)[1], atol=1e-6)
    far = way(value, locations.at[0, 0].set(1e30), weights)
    np.testing.assert_array_equal(far[0, 0], jnp.zeros(12))


def test_wrong_level_sizes_are_refused():
    value, locations, weights = draw()
    with pytest.raises(ValueError, match="50 cells, the values 49"):
        sample(value, ((5, 7), (3, 4), (1, 3)), locations, weights)


@pytest.mark.parametrize("heads", [None, "tensor"])
def test_rows_and_heads_on_many_devices_need_no_collective(heads):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    arrays = draw(rows=4, heads=2, queries=40)

    def both(value, locations, weights):
        out, pull = jax.vjp(lambda *xs: sample(xs[0], SHAPES, *xs[1:]), value, locations, weights)
        return out, pull(out)

    want = jax.jit(both)(*arrays)
    sharding = NamedSharding(mesh, PartitionSpec("data", None, heads))
    with jax.set_mesh(mesh), axis_rules({"batch": "data", "heads": heads}):
        placed = [jax.device_put(x, sharding) for x in arrays]
        program = jax.jit(lambda *arrays: both(*arrays)).lower(*placed).compile()
    assert collectives(parse(program.as_text()), dict(mesh.shape)) == []
    for a, b in zip(jax.tree.leaves(program(*placed)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_starts_as_a_star_and_skips_padding():
    attention = DeformableAttention(8, 4, 3, 2, dtype=jnp.float32, rngs=Rngs(0))
    rng = np.random.default_rng(0)
    query, value = (jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32) for n in (6, CELLS))
    references = jnp.full((2, 6, 3, 2), 0.5)
    valid = jnp.ones((2, CELLS), bool)
    got = attention(query, value, valid, references, SHAPES)
    locations = np.full((2, 6, 4, 3, 2, 2), 0.5)
    for head, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for level, (h, w) in enumerate(SHAPES):
            for point in range(2):
                locations[:, :, head, level, point] += np.array([x / w, y / h]) * (point + 1)
    cells = attention.value(value)
    want = attention.out(
        jnp.asarray(looped(cells, locations, np.full(locations.shape[:-1], 1 / 6)), jnp.float32).reshape(
            2, 6, 4, 2
        )
    )
    np.testing.assert_allclose(got, want, atol=1e-5)

    hidden = attention(query, value.at[:, 10:].set(7.0), valid.at[:, 10:].set(False), references, SHAPES)
    again = attention(query, value.at[:, 10:].set(-3.0), valid.at[:, 10:].set(False), references, SHAPES)
    np.testing.assert_array_equal(hidden, again)


def test_offsets_from_a_box_are_shares_of_it():
    attention = DeformableAttention(8, 4, 3, 2, dtype=jnp.float32, rngs=Rngs(0))
    rng = np.random.default_rng(0)
    query, value = (jnp.asarray(rng.normal(size=(1, n, 8)), jnp.float32) for n in (1, CELLS))
    box = jnp.asarray([0.4, 0.6, 0.2, 0.3])
    got = attention(query, value, jnp.ones((1, CELLS), bool), jnp.broadcast_to(box, (1, 1, 3, 4)), SHAPES)
    steps = np.asarray(star(None, (4, 3, 2, 2), jnp.float32))
    locations = 0.5 * steps / 2 * np.array([0.2, 0.3]) + np.array([0.4, 0.6])
    sums = looped(attention.value(value), locations[None, None], np.full((1, 1, 4, 3, 2), 1 / 6))
    want = attention.out(jnp.asarray(sums, jnp.float32).reshape(1, 1, 4, 2))
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(ValueError, match="3 numbers"):
        attention(query, value, jnp.ones((1, CELLS), bool), jnp.ones((1, 1, 3, 3)), SHAPES)
