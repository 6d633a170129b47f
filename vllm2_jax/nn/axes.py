# SPDX-License-Identifier: Apache-2.0
"""Names of array axes, and the rules that map them to mesh axes.

A `Param` says what its axes are (`axes=("embed", "mlp")`), an activation says it through `constrain`. What a
name means on a mesh is decided outside, by a sharding strategy: a dict from axis name to mesh axis or axes.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

# A name outside this tuple is a typing error somewhere and raises.
AXES = (
    "batch",  # groups of rows, or rows once they are flattened
    "length",  # columns of the language model, or tokens of an image
    "embed",  # the residual width of any transformer
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",  # the wide layer of a feed-forward block
    "vocab",
    "layers",  # the leading axis of stacked blocks
    "lora",  # rank of an adapter
    "queries",  # learned queries of a super link or of a decoder
    "conv_in",
    "conv_out",
)

Rules = Mapping[str, str | tuple[str, ...] | None]

_RULES: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("axis_rules", default=None)


@contextlib.contextmanager
def axis_rules(rules: Rules | None) -> Iterator[None]:
    """Makes `rules` the ones that `constrain` applies while a program is traced."""
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


def check(name: str | None) -> None:
    """Raises ValueError for a name that is not in `AXES` (None, an unnamed axis, passes)."""
    if name is not None and name not in AXES:
        raise ValueError(f"unknown axis name {name!r}; the known ones are {', '.join(AXES)}")


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes that the active rules split `name` over: none without rules, or if it is not split."""
    check(name)
    rules = _RULES.get()
    found = rules.get(name) if rules else None
    return (found,) if isinstance(found, str) else tuple(found or ())


def dividing_axes(name: str, count: int) -> tuple[str, ...] | None:
    """`mesh_axes`, for the spec of a `shard_map`; None where they do not cut `count` evenly."""
    axes, mesh = mesh_axes(name), jax.sharding.get_abstract_mesh()
    return axes if axes and count % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def on_each_device(function: Callable[..., Any], rows: int) -> Callable[..., Any]:
    """`function` of arrays that lead with `rows` rows, on a mesh run by every device for its own rows.

    For sorts, `top_k` and loops, which the partitioner runs on all rows everywhere, or in lockstep.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    spec = PartitionSpec(dividing_axes("batch", rows))
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the sharding of an activation by axis names; without active rules it returns `x` as it is.

    Axes of length 1 stay whole: what all rows share is computed once, not by one device for all. A mesh axis
    that two names ask for splits the first of them.
    """
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}")
    for name in names:
        check(name)
    rules = _RULES.get()
    if rules is None:
        return x
    split: list[tuple[str, ...]] = []
    for name, size in zip(names, x.shape, strict=True):
        taken = {axis for axes in split for axis in axes}
        wanted = mesh_axes(name) if name and size > 1 else ()
        split.append(tuple(axis for axis in wanted if axis not in taken))
    spec = PartitionSpec(*(axes or None for axes in split))
    return jax.lax.with_sharding_constraint(x, spec)
