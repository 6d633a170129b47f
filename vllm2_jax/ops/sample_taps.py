# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling for a CPU: every touched cell is read from the values as they lie.

One loop adds up a few cells for thousands of (query, head) pairs; XLA fuses the reads with the sum, so that
a read is four vector instructions and no row is ever stored. Pairs are taken some at a time, to stay in the
cache. The backward pass does store rows, for fewer pairs at a time, and multiplies them as matrices.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vllm2_jax.ops.bilinear import corners
from vllm2_jax.ops.levels import Shapes

PAIRS = 1024  # (query, head) pairs at a time: 1 MB with all they need, in a core's cache
STORED = 128  # of them, whose rows the backward pass stores at a time: 1 MB again
PARTS = 4  # of the heads, which the backward pass works on side by side

_ROW = jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
_INTO = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)
_SAFE = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sample_taps(
    value: Float[Array, "B S H D"],
    shapes: Shapes,
    locations: Float[Array, "B Q H L P 2"],
    weights: Float[Array, "B Q H L P"],
) -> Float[Array, "B Q H D"]:
    """Weighted sum of bilinear samples, float32; arguments as in `nn.deformable.sample`."""
    flat, steps = value.reshape(-1, value.shape[-1]), _steps(shapes, weights.shape)
    together = 2 if len(steps) % 2 == 0 else 1  # points a turn: 8 cells make a loop that is long enough

    def pairs(_, chunk):
        places, weights, first = chunk
        cell, shares = _touched(places, weights, shapes)
        row = first + cell * value.shape[2]

        def turn(total, xs):
            row, steps, shares = xs
            for point in range(together):
                for corner in range(4):
                    read = _read(flat, row[point] + steps[point, corner])
                    total = total + shares[point, corner][:, None] * read
            return total, None

        xs = [x.reshape(-1, together, *x.shape[1:]) for x in (row.astype(jnp.uint32), steps, shares)]
        total = jnp.zeros((len(first), value.shape[-1]), jnp.float32)
        return None, jax.lax.scan(turn, total, tuple(xs))[0]

    chunks, count = _chunks(value.shape, locations, weights)
    _, out = jax.lax.scan(pairs, None, chunks)
    return out.reshape(-1, value.shape[-1])[:count].reshape(*locations.shape[:3], -1)


def _forward(value, shapes, locations, weights):
    return sample_taps(value, shapes, locations, weights), (value, locations, weights)


def _backward(shapes, saved, gradient):
    # A part of the heads has a table of its own to add to: the parts of a turn need not wait for each other.
    # One loop over all parts kept more cores busy than a loop for each.
    heads, width = gradient.shape[2:]
    count = math.gcd(heads, PARTS) if math.prod(gradient.shape[:3]) >= PARTS * PAIRS else 1
    parts = list(zip(*(jnp.split(x, count, axis=2) for x in (*saved, gradient)), strict=True))
    flats = [value.reshape(-1, width) for value, *_ in parts]
    chunks = [_chunks(value.shape, *others) for value, *others in parts]
    steps = _steps(shapes, parts[0][2].shape)

    def pairs(totals, chunks):
        prepared = [_prepare(shapes, heads // count, steps, *chunk) for chunk in chunks]

        def stored(totals, xs):
            return tuple(zip(*map(_add, flats, totals, xs), strict=True))

        totals, products = jax.lax.scan(stored, totals, tuple(xs for xs, _ in prepared))
        return totals, tuple(pull(x) for (_, pull), x in zip(prepared, products, strict=True))

    zeros = tuple(jnp.zeros(flat.shape, jnp.float32) for flat in flats)
    totals, pulled = jax.lax.scan(pairs, zeros, tuple(chunk for chunk, _ in chunks))
    found = []
    for part, (_, size), total, of_pairs in zip(parts, chunks, totals, pulled, strict=True):
        xs = total, *(x.reshape(-1, *x.shape[2:])[:size] for x in of_pairs)
        found.append([x.reshape(like.shape).astype(like.dtype) for x, like in zip(xs, part[:3], strict=True)])
    return tuple(jnp.concatenate(xs, axis=2) for xs in zip(*found, strict=True))


def _prepare(shapes, heads, steps, places, weights, first, gradient):
    """What `_add` takes of a chunk of pairs, and the way back from its products to places and weights."""

    def touched(places, weights):
        cell, shares = _touched(places, weights, shapes)
        return shares, cell

    shares, pull, cell = jax.vjp(touched, places, weights, has_aux=True)
    row = (first + cell * heads).astype(jnp.uint32)[:, None] + steps[..., None]

    def by_pair(x):  # [K, 4, n] -> [n / STORED, STORED, 4 K]
        return x.reshape(-1, x.shape[-1]).T.reshape(-1, STORED, 4 * len(steps))

    def pulled(products):
        return pull(products.reshape(-1, 4 * len(steps)).T.reshape(shares.shape))

    return (by_pair(row), by_pair(shares), gradient.reshape(-1, STORED, gradient.shape[-1])), pulled


def _add(flat, total, xs):
    """Adds what STORED pairs give to the table; also their gradients times the rows that they read."""
    row, share, gradient = xs
    reads = _read(flat, row.reshape(-1)).reshape(*row.shape, -1).astype(jnp.float32)
    adds = (share[..., None] * gradient[:, None]).reshape(-1, flat.shape[1])
    total = jax.lax.scatter_add(total, row.reshape(-1, 1), adds, _INTO, mode=_SAFE)
    return total, jnp.einsum("nkd,nd->nk", reads, gradient)


sample_taps.defvjp(_forward, _backward)


def _read(flat: Float[Array, "R D"], row: Array) -> Float[Array, "n D"]:
    # Unsigned, and promised to be inside: no instruction is spent on indices that count from the end.
    return jax.lax.gather(flat, row[:, None], _ROW, (1, flat.shape[1]), mode=_SAFE)


def _steps(shapes: Shapes, weights_shape: tuple[int, ...]) -> Array:
    """[K, 4]: rows from the first to every corner of a block of cells, for each of the K points of a pair."""
    _, _, heads, _, points = weights_shape
    steps = [[0, w > 1, w * (h > 1), w * (h > 1) + (w > 1)] for h, w in shapes]
    return jnp.asarray(np.repeat(np.array(steps) * heads, points, axis=0), jnp.uint32)


def _touched(
    places: Float[Array, "n L P 2"], weights: Float[Array, "n L P"], shapes: Shapes
) -> tuple[Int[Array, "K n"], Float[Array, "K 4 n"]]:
    """First cell of every point's block, counted over all levels, and the weighted shares of its four."""
    # Pairs are the last axis: all that follows are long vectors.
    places, weights = places.transpose(1, 3, 2, 0), weights.transpose(1, 2, 0)
    cells, shares, start = [], [], 0
    for (h, w), place, weight in zip(shapes, places, weights, strict=True):
        cell, share = corners(place[0] * w - 0.5, place[1] * h - 0.5, (h, w))
        cells.append(start + cell)
        shares.append((share * weight).swapaxes(0, 1))
        start += h * w
    return jnp.concatenate(cells), jnp.concatenate(shares)


def _chunks(value_shape, locations, weights, *others):
    """Chunks of (query, head) pairs: where they look, their first cell's row, `others`; and their count."""
    rows, queries, heads = locations.shape[:3]
    count = rows * queries * heads
    size = min(PAIRS, -(-count // STORED) * STORED)
    missing = -count % size
    row, head = jnp.arange(rows, dtype=jnp.int32), jnp.arange(heads, dtype=jnp.int32)
    first = jnp.broadcast_to(row[:, None, None] * (value_shape[1] * heads) + head, (rows, queries, heads))

    def cut(x):
        x = x.reshape(count, *x.shape[3:])
        x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(-1, size, *x.shape[1:])

    floats = (x.astype(jnp.float32) for x in (locations, weights))
    return tuple(cut(x) for x in (*floats, first, *others)), count
