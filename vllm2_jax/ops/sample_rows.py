# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling for an accelerator: one gather a point, or none at all.

A gather costs a TPU about the same for any row of up to 128 numbers. So the 2 x 2 cells around a point are
laid side by side as one row of a table, and one row is read for every point (Scenic's deformable attention
does the same). On levels with few cells a matrix product with the shares of *all* cells is cheaper still.
Rows and shares exist for some queries at a time only, in the backward pass as well.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vllm2_jax.ops.bilinear import corners, hat
from vllm2_jax.ops.levels import Shapes

FEW = 1024  # cells of a level that is sampled by a matrix product; measured in docs/performance.md
CHUNK = 2**21  # numbers in the rows, or shares, that exist at a time: 8 MiB

_EXACT = jax.lax.Precision.HIGHEST
_SAFE = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def sample_rows(
    value: Float[Array, "B S H D"],
    shapes: Shapes,
    locations: Float[Array, "B Q H L P 2"],
    weights: Float[Array, "B Q H L P"],
    *,
    few: int = FEW,
) -> Float[Array, "B Q H D"]:
    """Weighted sum of bilinear samples, float32; arguments as in `nn.deformable.sample`.

    Args:
      few: levels with up to that many cells are sampled by a matrix product.
    """
    value = value.swapaxes(1, 2)  # [B, H, S, D]
    # Queries are the last axis: all that is computed for a point are long vectors.
    places = locations.astype(jnp.float32).transpose(3, 5, 4, 0, 2, 1)  # [L, 2, P, B, H, Q]
    weights = weights.astype(jnp.float32).transpose(3, 4, 0, 2, 1)
    out, start, tables, reads = jnp.zeros(()), 0, [], []
    for (h, w), place, weight in zip(shapes, places, weights, strict=True):
        cells = value[:, :, start : start + h * w]
        x, y = place[0] * w - 0.5, place[1] * h - 0.5
        if h * w <= few:
            out = out + _by_product(cells, (h, w), x, y, weight)
        else:
            tables.append(_blocks(cells, (h, w)))
            index, shares = corners(x, y, (h, w))
            reads.append((sum(t.shape[2] for t in tables[:-1]) + index, shares * weight))
        start += h * w
    if tables:
        index = jnp.concatenate([index for index, _ in reads])
        shares = jnp.concatenate([shares for _, shares in reads], axis=1)
        out = out + _by_row(jnp.concatenate(tables, axis=2), index, shares)
    return out.swapaxes(1, 2)


def _blocks(cells: Float[Array, "B H S D"], shape: tuple[int, int]) -> Float[Array, "B H S 4*D"]:
    """Every cell with those to the right, below, and below to the right, which are zeros at the border."""
    maps = cells.reshape(*cells.shape[:2], *shape, cells.shape[-1])
    maps = jnp.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    h, w = shape
    around = [maps[:, :, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(around, axis=-1).reshape(*cells.shape[:3], -1)


def _by_row(
    table: Float[Array, "B H T W"], index: Int[Array, "K B H Q"], shares: Float[Array, "4 K B H Q"]
) -> Float[Array, "B H Q D"]:
    """Reads one row of W = 4 D numbers for every point."""
    rows, heads, length, width = table.shape
    queries = index.shape[-1]
    # One axis of rows, so that the index is one number and a read one slice.
    first = (jnp.arange(rows)[:, None] * heads + jnp.arange(heads)) * length
    flat = (index + first[:, :, None]).reshape(len(index), -1)
    out = _gather_sum(table.reshape(-1, width), flat, shares.reshape(4, len(index), -1))
    return out.reshape(rows, heads, queries, -1)


@jax.custom_vjp
def _gather_sum(
    table: Float[Array, "R W"], index: Int[Array, "K n"], shares: Float[Array, "4 K n"]
) -> Float[Array, "n D"]:
    """Sum over k and c of `shares[c, k, n] * table[index[k, n], c * D : (c + 1) * D]`, in chunks of n."""

    def body(_, chunk):
        index, shares = chunk
        total = (_read(table, index) * _spread(shares, table.shape[1])).sum(0)
        return None, sum(jnp.split(total, 4, axis=-1))

    (index, shares), count = _cut(len(index) * table.shape[1], index, shares)
    _, out = jax.lax.scan(body, None, (index, shares))
    return out.reshape(-1, out.shape[-1])[:count]


def _forward(table, index, shares):
    return _gather_sum(table, index, shares), (table, index, shares)


def _backward(saved, gradient):
    table, index, shares = saved
    width = table.shape[1]

    def body(total, chunk):
        index, shares, gradient = chunk
        wide = jnp.concatenate([gradient.T] * 4, axis=-1)
        products = _gathered(_read(table, index) * wide)
        total = total.at[index].add(_spread(shares, width) * wide, mode="promise_in_bounds")
        return total, products

    chunks, count = _cut(len(index) * width, index, shares, gradient.T)
    total, products = jax.lax.scan(body, jnp.zeros(table.shape, jnp.float32), chunks)
    products = jnp.moveaxis(products, 0, -2).reshape(*shares.shape[:2], -1)[..., :count]
    return total.astype(table.dtype), None, products


_gather_sum.defvjp(_forward, _backward)


def _read(table: Float[Array, "R W"], index: Int[Array, "K n"]) -> Float[Array, "K n W"]:
    return table.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _spread(shares: Float[Array, "4 K n"], width: int) -> Float[Array, "K n W"]:
    """Each of the four shares for all D numbers of its cell: a product, since lanes cannot be repeated."""
    return jnp.einsum("ckn,cw->knw", shares, _corner_of(width), precision=_EXACT)


def _gathered(x: Float[Array, "K n W"]) -> Float[Array, "4 K n"]:
    """Sums over the D numbers of each cell: the transpose of `_spread`."""
    return jnp.einsum("knw,cw->ckn", x, _corner_of(x.shape[-1]), precision=_EXACT)


def _corner_of(width: int) -> Float[Array, "4 W"]:
    return jnp.asarray(np.kron(np.eye(4), np.ones((1, width // 4))), jnp.float32)


def _by_product(
    cells: Float[Array, "B H S D"],
    shape: tuple[int, int],
    x: Float[Array, "P B H Q"],
    y: Float[Array, "P B H Q"],
    weights: Float[Array, "P B H Q"],
) -> Float[Array, "B H Q D"]:
    """The shares of all cells of a level, some queries at a time, times the cells.

    In the precision of the values: bfloat16 shares have an error of 0.4 %, as the values themselves.
    """
    dtype = cells.dtype
    cells = cells.astype(jnp.float32)  # the constant of a loop: its gradient is added up in this precision
    rows, columns = (jnp.asarray(at, jnp.float32) for at in np.divmod(np.arange(cells.shape[2]), shape[1]))

    @jax.checkpoint
    def product(cells, x, y, weights):
        shares = sum(
            weights[p][..., None] * hat(y[p][..., None] - rows) * hat(x[p][..., None] - columns)
            for p in range(len(weights))
        )
        return jnp.einsum(
            "bhqs,bhsd->bhqd",
            shares.astype(dtype),
            cells.astype(dtype),
            precision=_EXACT if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )

    chunks, count = _cut(math.prod(cells.shape[:3]), x, y, weights)
    _, out = jax.lax.scan(lambda _, chunk: (None, product(cells, *chunk)), None, chunks)
    return jnp.moveaxis(out, 0, 2).reshape(*cells.shape[:2], -1, cells.shape[-1])[:, :, :count]


def _cut(numbers: int, *arrays: Array) -> tuple[tuple[Array, ...], int]:
    """The last axis in chunks of `CHUNK` numbers, at `numbers` an entry, on a new first axis; its length."""
    count = arrays[0].shape[-1]
    # A multiple of 128 fills the lanes of a register.
    size = min(-(-count // 128) * 128, max(1, CHUNK // numbers // 128) * 128)

    def cut(x):
        x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, -count % size)))
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)

    return tuple(cut(x) for x in arrays), count
