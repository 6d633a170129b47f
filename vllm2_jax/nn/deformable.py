# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: every query looks at a few points of every level, between cells.

The sampling is one gather: the four cells around a point are stored side by side as one row (a table four
times the size of the values), and a row is read for every point. Rows are read for a few queries at a time,
forward and backward, so that they never exist for all queries: 13,000 queries x 8 heads x 16 points x 4 cells
x 32 channels are 0.9 GB a picture in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.nn.layers import einsum
from vllm2_jax.ops.levels import Shapes

# Numbers that are gathered at a time for each row of the batch: 16 MiB in float32.
CHUNK = 2**22


def sample(
    value: Float[Array, "B S H D"],
    shapes: Shapes,
    locations: Float[Array, "B Q H L P 2"],
    weights: Float[Array, "B Q H L P"],
) -> Float[Array, "B Q H*D"]:
    """Weighted sum of bilinear samples over levels and points; float32, heads side by side.

    A location (x, y) is a share of the padded map: cell i's centre is at (i + 0.5) / size. Each of the four
    cells around a point counts as 0 if it lies outside. Source: official `multi_scale_deformable_attention`
    (grid_sample with align_corners False and zero padding).

    Memory beyond inputs and outputs, a row of the batch: the table (4 x value), 5 numbers a point (as many
    again backward), and the gathered rows of one chunk. The backward pass gathers again.

    Args:
      value: S cells, level after level as `ops.levels.flatten` lays them; read in its own precision.
      shapes: (height, width) of the L levels.
      weights: usually the softmax over L * P.
    """
    table, index, coefficients = neighbours(value, shapes, locations, weights)
    rows, queries, heads = locations.shape[:3]
    out = gather_sum(table, index, coefficients)
    return out.swapaxes(1, 2).reshape(rows, queries, heads * value.shape[-1])


def neighbours(
    value: Float[Array, "B S H D"],
    shapes: Shapes,
    locations: Float[Array, "B Q H L P 2"],
    weights: Float[Array, "B Q H L P"],
) -> tuple[Float[Array, "B H T 4 D"], Int[Array, "B H Q K"], Float[Array, "B H Q K 4"]]:
    """The table of the four cells around every corner, and what each of the K = L * P points takes from it.

    Level (h, w) has (h + 1) * (w + 1) corners; the cells beyond the border are zeros.

    Returns:
      The table, the row of every point, and its share of the row's four cells: upper left, upper right,
      lower left, lower right.
    """
    rows, count, heads, channels = value.shape
    if (wanted := sum(h * w for h, w in shapes)) != count:
        raise ValueError(f"levels {shapes} have {wanted} cells, the values {count}")
    tables, starts, at = [], [], 0
    for h, w in shapes:
        cells = value[:, at : at + h * w].reshape(rows, h, w, heads, channels).transpose(0, 3, 1, 2, 4)
        cells = jnp.pad(cells, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        around = [cells[:, :, y : y + h + 1, x : x + w + 1] for y in (0, 1) for x in (0, 1)]
        tables.append(jnp.stack(around, axis=-2).reshape(rows, heads, (h + 1) * (w + 1), 4, channels))
        starts.append(sum(table.shape[2] for table in tables[:-1]))
        at += h * w

    sizes = np.array([[w, h] for h, w in shapes], np.int32)[:, None]  # [L, 1, 2], as (x, y)
    # Corner (0, 0) is the upper left one of the map, half a cell before the first centre.
    place = locations.astype(jnp.float32) * sizes + 0.5
    corner = jnp.floor(place)
    right, down = jnp.split(place - corner, 2, axis=-1)
    # The table has a row for every corner; a point that is outside even so touches no cell.
    outside = ((corner < 0) | (corner > sizes)).any(-1)
    share = jnp.concatenate(
        [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], -1
    )
    coefficients = jnp.where(outside[..., None], 0.0, share * weights[..., None].astype(jnp.float32))
    # NaN locations (a diverged run) go to row 0 and keep their NaN share.
    corner = jnp.clip(jnp.nan_to_num(corner), 0, sizes).astype(jnp.int32)
    index = jnp.array(starts, jnp.int32)[:, None] + corner[..., 1] * (sizes[..., 0] + 1) + corner[..., 0]

    def by_head(x: Array) -> Array:  # [B, Q, H, L, P, ...] -> [B, H, Q, K, ...]
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(*x.shape[:3], -1, *x.shape[5:])

    return jnp.concatenate(tables, axis=2), by_head(index), by_head(coefficients)


@jax.custom_vjp
def gather_sum(
    table: Float[Array, "B H T 4 D"], index: Int[Array, "B H Q K"], coefficients: Float[Array, "B H Q K 4"]
) -> Float[Array, "B H Q D"]:
    """Sum over k and c of `coefficients[q, k, c] * table[index[q, k], c]`, a few queries at a time."""

    def body(_, chunk):
        return None, _sum(_read(table, chunk[0]), chunk[1])

    chunks, queries = _chunks(table, index, coefficients)
    _, out = jax.lax.scan(body, None, chunks)
    return _unchunk(out, queries)


def _forward(table, index, coefficients):
    return gather_sum(table, index, coefficients), (table, index, coefficients)


def _backward(saved, gradient):
    table, index, coefficients = saved

    def body(total, chunk):
        index, coefficients, gradient = chunk
        share = jnp.einsum("bhqkcd,bhqd->bhqkc", _read(table, index), gradient)
        rows = coefficients[..., None] * gradient[..., None, None, :]
        return _add(total, index, rows), share

    (index, coefficients, gradient), queries = _chunks(table, index, coefficients, gradient)
    total = jnp.zeros(table.shape, jnp.float32)
    total, share = jax.lax.scan(body, total, (index, coefficients, gradient))
    return total.astype(table.dtype), None, _unchunk(share, queries)


gather_sum.defvjp(_forward, _backward)


def _read(table: Float[Array, "B H T 4 D"], index: Int[Array, "B H q K"]) -> Float[Array, "B H q K 4 D"]:
    def one(table, index):
        return table.at[index].get(mode="promise_in_bounds")

    return jax.vmap(jax.vmap(one))(table, index)


def _add(total, index, rows):
    def one(total, index, rows):
        return total.at[index].add(rows, mode="promise_in_bounds")

    return jax.vmap(jax.vmap(one))(total, index, rows)


def _sum(
    rows: Float[Array, "B H q K 4 D"], coefficients: Float[Array, "B H q K 4"]
) -> Float[Array, "B H q D"]:
    return jnp.einsum("bhqkcd,bhqkc->bhqd", rows, coefficients, preferred_element_type=jnp.float32)


def _chunks(table, *arrays):
    """`[B, H, Q, ...] -> [n, B, H, Q / n, ...]`, padded with zeros at the end, and Q."""
    heads, queries, points = arrays[0].shape[1:]
    size = min(queries, max(1, CHUNK // (heads * points * 4 * table.shape[-1])))
    count = -(-queries // size)
    size = -(-queries // count)  # as even as it gets

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, count * size - queries), *[(0, 0)] * (x.ndim - 3)))
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, size, *x.shape[3:]), 2, 0)

    return tuple(cut(x) for x in arrays), queries


def _unchunk(x: Array, queries: int) -> Array:
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :queries]


class DeformableAttention(nnx.Module):
    """Queries that look at `points` places a level around their reference, for each head.

    The offsets start as a star: head i points in direction 2 pi i / H, point p is p + 1 cells away; all
    points weigh the same. Source: official `GroundingDinoMultiscaleDeformableAttention`.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"the width {width} is not a multiple of its {heads} heads")
        head = width // heads
        zeros = nnx.initializers.zeros
        self.value = einsum(
            "bsd,dhk->bshk",
            (width, heads, head),
            ("embed", "heads", "head_dim"),
            inputs=1,
            dtype=dtype,
            rngs=rngs,
            init=nnx.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2)),
        )
        self.offsets = einsum(
            "bqd,dhlpc->bqhlpc",
            (width, heads, levels, points, 2),
            ("embed", "heads", None, None, None),
            inputs=1,
            dtype=dtype,
            rngs=rngs,
            init=zeros,
            bias_init=star,
        )
        self.weights = einsum(
            "bqd,dhlp->bqhlp",
            (width, heads, levels, points),
            ("embed", "heads", None, None),
            inputs=1,
            dtype=dtype,
            rngs=rngs,
            init=zeros,
        )
        self.out = einsum(
            "bqhk,hkd->bqd",
            (heads, head, width),
            ("heads", "head_dim", "embed"),
            inputs=2,
            dtype=dtype,
            rngs=rngs,
            init=nnx.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2),
        )
        self.dtype = dtype

    def __call__(
        self,
        query: Float[Array, "B Q W"],
        value: Float[Array, "B S W"],
        valid: Bool[Array, "B S"],
        references: Float[Array, "B Q L C"],
        shapes: Shapes,
    ) -> Float[Array, "B Q W"]:
        """What every query reads from the cells; points and sums are float32.

        Args:
          query: with its position already added.
          value: cells of all levels, without positions.
          valid: False in the padding, which reads as 0.
          references: (x, y) or (cx, cy, w, h) on each level, shares of the padded map. With a point, offsets
            are cells of the level; with a box, 1 / (2 * points) of its size.
          shapes: (height, width) of the levels.

        Raises:
          ValueError: references with neither 2 nor 4 numbers.
        """
        if references.shape[-1] not in (2, 4):
            raise ValueError(f"references are points or boxes, these have {references.shape[-1]} numbers")
        cells = jnp.where(valid[..., None, None], self.value(value), 0)
        offsets = self.offsets(query).astype(jnp.float32)
        points = offsets.shape[-2]
        reference = references.astype(jnp.float32)[:, :, None, :, None]
        if references.shape[-1] == 2:
            unit = 1 / jnp.array([[w, h] for h, w in shapes], jnp.float32)[:, None]
        else:
            unit = reference[..., 2:] * (0.5 / points)
        scores = self.weights(query).astype(jnp.float32)
        weights = jax.nn.softmax(scores, axis=(-2, -1))
        out = sample(cells, shapes, reference[..., :2] + offsets * unit, weights)
        return self.out(out.reshape(*query.shape[:2], *cells.shape[2:]).astype(self.dtype))


def star(key: Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "H L P 2"]:
    """Initial offsets of every head, level and point, in cells; the longer side of a step is 1."""
    del key
    heads, _, points, _ = shape
    angle = np.arange(heads) * (2 * np.pi / heads)
    step = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    step = step / np.abs(step).max(-1, keepdims=True)
    steps = step[:, None, None] * np.arange(1, points + 1)[:, None]
    return jnp.asarray(np.broadcast_to(steps, shape), dtype)
