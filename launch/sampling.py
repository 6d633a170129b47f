# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of deformable sampling at the sizes of a Swin-T detector and a picture of 800 x 800 pixels."""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch.estimate import estimate
from launch.race import Timed, need, race, show
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.nn.deformable import sample
from vllm2_jax.ops.sample_rows import FEW, sample_rows
from vllm2_jax.ops.sample_taps import sample_taps

LEVELS = ((100, 100), (50, 50), (25, 25), (13, 13))  # strides 8 to 64
CELLS, HEADS, POINTS, HEAD_WIDTH = sum(h * w for h, w in LEVELS), 8, 4, 32
QUERIES = {"encoder": CELLS, "decoder": 900}
CHIPS = ("v5e:2x2", "v5p:2x2x1")

# Ways to sample that are compiled for a TPU; `nn.deformable.sample` takes the one with `FEW`.
WAYS = {
    "four reads a point": sample_taps,
    "one read a point": functools.partial(sample_rows, few=0),
    f"products up to {FEW} cells": sample_rows,
    "products up to 2500 cells": functools.partial(sample_rows, few=2500),
    "products only": functools.partial(sample_rows, few=CELLS),
}


def deformable(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling of one picture in float32, forward and with all gradients, against PyTorch's `grid_sample`.

    With `--devices` "ours" is split over that many CPU devices by heads, as the axis `tensor` of a mesh
    does, and "one device" is the same on one: XLA leaves cores idle in a loop of small steps. "rows" reads
    2 x 2 cells as one row on one device, the best of the ways for a TPU that need no large products.
    """
    if HEADS % args.devices:
        raise SystemExit(f"--devices {args.devices}: has to divide {HEADS} heads")
    need("torch")
    from launch.peers.torch_deformable import Sampling

    found = {}
    for part, queries in QUERIES.items():
        arrays = inputs(queries)
        for backward in (False, True):
            peer = Sampling(LEVELS, arrays, backward=backward)
            ours = {"ours": by_heads(arrays, backward, args.devices)}
            ways = {"rows": WAYS["one read a point"]} | ({"one device": sample} if args.devices > 1 else {})
            ours |= {name: ours_on(way, arrays, backward) for name, way in ways.items()}
            for run in ours.values():
                for a, b in zip(run(), peer(), strict=True):
                    a = np.reshape(a, b.shape)
                    np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-3 * float(b.abs().max()))
            title = f"{part}, forward{' and backward' if backward else ''}"
            found[title] = race({**ours, "peer": peer}, args.rounds)
            show(title, found[title], queries, "queries")
    return found


def deformable_tpu(args: argparse.Namespace) -> dict[str, Any]:
    """Every way to sample compiled for one chip: memory, traffic and cycles by the compiler's estimates."""
    del args
    found = {}
    for chip in CHIPS:
        for part, queries in QUERIES.items():
            arrays = inputs(queries)
            arrays["value"] = arrays["value"].astype(jnp.bfloat16)  # as in training
            for name, way in WAYS.items():
                for backward in (False, True):
                    run, *given = program(way, arrays, backward)
                    title = f"{chip} {part}, {name}, forward{' and backward' if backward else ''}"
                    found[title] = estimate(run, given, chip)
                    numbers = "   ".join(f"{value:9.1f} {unit}" for unit, value in found[title].items())
                    print(f"{title:<72}{numbers}", flush=True)
    return found


def inputs(queries: int) -> dict[str, np.ndarray]:
    """One picture; points lie about two cells around the query's place, as after some training."""
    rng = np.random.default_rng(0)
    centres = [(np.argwhere(np.ones(shape))[:, ::-1] + 0.5) / shape[::-1] for shape in LEVELS]
    places = np.concatenate(centres) if queries == CELLS else rng.random((queries, 2))
    spread = rng.normal(0, 2, (1, queries, HEADS, len(LEVELS), POINTS, 2))
    weights = rng.random(spread.shape[:-1])
    arrays = {
        "value": rng.normal(size=(1, CELLS, HEADS, HEAD_WIDTH)),
        "locations": places[:, None, None, None] + spread / np.array([[w, h] for h, w in LEVELS])[:, None],
        "weights": weights / weights.sum((-2, -1), keepdims=True),
        "gradient": rng.normal(size=(1, queries, HEADS * HEAD_WIDTH)),
    }
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def program(way: Any, arrays: dict[str, np.ndarray], backward: bool) -> tuple[Any, ...]:
    """A function and its arguments: the output, or the three gradients as well."""
    given = [arrays[name] for name in ("value", "locations", "weights")]

    def forward(value, *where):
        return way(value, LEVELS, *where)

    def both(gradient, *given):
        out, pull = jax.vjp(forward, *given)
        return out, *pull(gradient.reshape(out.shape))

    return (both, arrays["gradient"], *given) if backward else (forward, *given)


def by_heads(arrays: dict[str, np.ndarray], backward: bool, devices: int) -> Timed:
    """One pass of `nn.deformable.sample` with its heads, in and out, split over some devices."""
    mesh = jax.make_mesh(
        (devices,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    once = ours_on(sample, arrays, backward, NamedSharding(mesh, PartitionSpec(None, None, "tensor")))

    def on_mesh() -> list[jax.Array]:
        with jax.set_mesh(mesh), axis_rules({"heads": "tensor"}):
            return once()

    return on_mesh


def ours_on(way: Any, arrays: dict[str, np.ndarray], backward: bool, where: Any = None) -> Timed:
    """One pass of one of our ways on arrays that are on the device, or devices, already."""
    run, *given = program(way, arrays, backward)
    compiled, placed = jax.jit(run), jax.device_put(given, where)

    def once() -> list[jax.Array]:
        return jax.block_until_ready(jax.tree.leaves(compiled(*placed)))

    return once
