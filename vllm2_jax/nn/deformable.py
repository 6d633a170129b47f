# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: every query looks at a few points of every level, between cells."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vllm2_jax.nn.axes import dividing_axes
from vllm2_jax.nn.layers import einsum
from vllm2_jax.ops.levels import Shapes
from vllm2_jax.ops.sample_rows import sample_rows
from vllm2_jax.ops.sample_taps import sample_taps


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

    Compiled for a CPU it reads cell by cell (`ops.sample_taps`), for anything else blocks of cells
    (`ops.sample_rows`). What is read is never stored for all queries (13,000 queries x 8 heads x 16 points x
    4 cells x 32 channels would be 0.9 GB a picture). Memory beyond inputs and outputs is some MB a device,
    and on an accelerator a table of 4 x value and 5 numbers a point. The backward pass reads again. On a mesh
    every device does its rows and heads alone.

    Args:
      value: S cells, level after level as `ops.levels.flatten` lays them; read in its own precision.
      shapes: (height, width) of the L levels.
      weights: usually the softmax over L * P.

    Raises:
      ValueError: the levels do not have S cells.
    """
    if (wanted := sum(h * w for h, w in shapes)) != value.shape[1]:
        raise ValueError(f"levels {shapes} have {wanted} cells, the values {value.shape[1]}")
    return _sample(shapes, value, locations, weights).reshape(*locations.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(shapes, value, locations, weights):
    """Keeps nothing but its inputs for the backward pass."""

    def sampled(implementation, value, *where):
        return implementation(value, shapes, *where)

    return _on_each_device(sampled, value, locations, weights)


def _forward(shapes, value, locations, weights):
    return _sample(shapes, value, locations, weights), (value, locations, weights)


def _backward(shapes, saved, gradient):
    def pulled(implementation, value, locations, weights, gradient):
        _, pull = jax.vjp(lambda v, *where: implementation(v, shapes, *where), value, locations, weights)
        return pull(gradient)

    return _on_each_device(pulled, *saved, gradient)


_sample.defvjp(_forward, _backward)


def _on_each_device(run: Callable, *arrays: Array) -> Any:
    """`run(implementation, *arrays)`, the implementation by the platform that the program is compiled for.

    On a mesh inside a `shard_map`, which is never differentiated: its transpose adds up over mesh axes that
    split nothing here.
    """

    def local(*arrays):
        cpu, other = (functools.partial(run, chosen) for chosen in (sample_taps, sample_rows))
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=other)

    if jax.sharding.get_abstract_mesh().empty:
        return local(*arrays)
    rows, _, heads, _ = arrays[0].shape
    # All arrays, in and out, have rows first and heads third.
    spec = PartitionSpec(dividing_axes("batch", rows), None, dividing_axes("heads", heads))
    return jax.shard_map(local, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)


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
