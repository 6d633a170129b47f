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
from jaxtyping import Array, Float, Int, UInt32

from vllm2_jax.ops.bilinear import corners
from vllm2_jax.ops.levels import Shapes

PAIRS = 1024  # (query, head) pairs at a time: 1 MB with all they need, in a core's cache
STORED = 64  # of them, whose rows the backward pass stores at a time: 0.5 MB
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
    flat, heads = value.reshape(-1, value.shape[-1]), value.shape[2]
    points = math.prod(weights.shape[3:])
    together = 2 if points % 2 == 0 else 1  # points a turn: 8 cells make a loop that is long enough

    def pairs(_, chunk):
        *where, first = chunk
        shares, row = _touched(shapes, heads, first, *where)

        def turn(number, total):
            for point in range(together):
                at = number * together + point
                rows, of_rows = (
                    jax.lax.dynamic_index_in_dim(x, at, 2, keepdims=False) for x in (row, shares)
                )
                for corner in range(4):
                    total = total + of_rows[:, corner, None] * _read(flat, rows[:, corner])
            return total

        total = jnp.zeros((len(first), value.shape[-1]), jnp.float32)
        return None, jax.lax.fori_loop(0, points // together, turn, total)

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

    def pairs(totals, chunks):
        prepared = [_prepare(shapes, heads // count, *chunk) for chunk in chunks]

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


def _prepare(shapes, heads, x, y, weights, first, gradient):
    """What `_add` takes of a chunk of pairs, and the way back from its products to places and weights."""
    touched = functools.partial(_touched, shapes, heads, first)
    shares, pull, row = jax.vjp(touched, x, y, weights, has_aux=True)

    def pulled(products):
        of_x, of_y, of_weights = pull(products.reshape(shares.shape))
        return jnp.stack([of_x, of_y], axis=-1), of_weights

    return tuple(array.reshape(-1, STORED, *array.shape[1:]) for array in (row, shares, gradient)), pulled


def _add(flat, total, xs):
    """Adds what STORED pairs give to the table; also their gradients times the rows that they read."""
    # Their last axes are joined here: joined before, XLA computed all anew for each of the 64 cells.
    row, share = (x.reshape(len(x), -1) for x in xs[:2])
    gradient = xs[2]
    reads = _read(flat, row.reshape(-1)).reshape(*row.shape, -1).astype(jnp.float32)
    adds = (share[..., None] * gradient[:, None]).reshape(-1, flat.shape[1])
    total = jax.lax.scatter_add(total, row.reshape(-1, 1), adds, _INTO, mode=_SAFE)
    return total, jnp.einsum("nkd,nd->nk", reads, gradient)


sample_taps.defvjp(_forward, _backward)


def _read(flat: Float[Array, "R D"], row: Array) -> Float[Array, "n D"]:
    # Unsigned, and promised to be inside: no instruction is spent on indices that count from the end.
    return jax.lax.gather(flat, row[:, None], _ROW, (1, flat.shape[1]), mode=_SAFE)


def _touched(
    shapes: Shapes,
    heads: int,
    first: Int[Array, " n"],
    x: Float[Array, "n K"],
    y: Float[Array, "n K"],
    weights: Float[Array, "n K"],
) -> tuple[Float[Array, "n 4 K"], UInt32[Array, "n 4 K"]]:
    """The weighted shares of every point's four cells, and the rows of these cells.

    All is computed as locations lie in memory, and in one formula for all levels: transposed, or level by
    level and concatenated, XLA makes no vectors of it.
    """
    points = x.shape[1] // len(shapes)
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0).T
    height, width = sizes
    before = np.repeat(np.cumsum([0, *(h * w for h, w in shapes[:-1])]), points).astype(np.int32)
    cell, shares = corners(x * width - 0.5, y * height - 0.5, sizes, axis=1)
    right, down = width > 1, width * (height > 1)  # to the next cell, if there is one
    steps = np.stack([0 * down, right, down, down + right])
    rows = first[:, None] + (before + cell) * heads
    row = rows.astype(jnp.uint32)[:, None] + (steps * heads).astype(np.uint32)
    return shares * weights[:, None], row


def _chunks(value_shape, locations, weights, *others):
    """Chunks of (query, head) pairs and their count: x, y, weights, the row of their cell 0, and `others`."""
    rows, queries, heads = locations.shape[:3]
    count = rows * queries * heads
    size = min(PAIRS, -(-count // STORED) * STORED)
    missing = -count % size
    row, head = jnp.arange(rows, dtype=jnp.int32), jnp.arange(heads, dtype=jnp.int32)
    first = jnp.broadcast_to(row[:, None, None] * (value_shape[1] * heads) + head, (rows, queries, heads))

    def cut(x):
        x = x.reshape(count, *([math.prod(x.shape[3:])] if x.ndim > 3 else []))
        x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(-1, size, *x.shape[1:])

    floats = (x.astype(jnp.float32) for x in (locations[..., 0], locations[..., 1], weights))
    return tuple(cut(x) for x in (*floats, first, *others)), count
