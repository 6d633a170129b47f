# SPDX-License-Identifier: Apache-2.0
"""Named axes + rules -> shardings, for parameters, gradients, optimizer state and batches alike."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vllm2_jax.nn import axes as axis_names
from vllm2_jax.sharding.strategies import MeshAxes, mesh_axes

Rules = Mapping[str, MeshAxes]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one leaf goes.

    Attributes:
      path: names from the root, joined by "/".
      shape, dtype: of the whole array.
      axes: name of each array axis; None is unnamed.
      spec: mesh axes that split each array axis.
      fallbacks: why an axis that a rule wanted split is not: `"heads: 6 over tensor=4"`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    spec: P
    fallbacks: tuple[str, ...]


def is_variable(leaf: Any) -> bool:
    """True for the Variables of NNX, which carry the axis names."""
    return isinstance(leaf, nnx.Variable)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of jax as `"llm/layers/mlp/up/kernel"`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def place(path: str, leaf: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Placement:
    """Decides where one leaf goes. Arrays that are not Variables (counters, scalars) are replicated.

    Raises:
      ValueError: a Variable without `axes`, more names than array axes, an unknown name, a mesh axis that
        does not exist or that splits two axes of the array.
    """
    if not is_variable(leaf):
        return Placement(path, tuple(leaf.shape), leaf.dtype, (None,) * leaf.ndim, P(), ())
    value = leaf.get_raw_value()
    names = leaf.get_metadata().get("axes")
    if names is None:
        raise ValueError(
            f"{path} has no axis names; create the Param with axes=(...), one name or None an axis"
        )
    # Right-aligned: `stack` adds a leading axis without touching the names of a block.
    names = ("layers",) * (value.ndim - len(names)) + tuple(names)
    if len(names) != value.ndim:
        raise ValueError(f"{path} has {len(names)} axis names {names} for the shape {tuple(value.shape)}")
    for name in names:
        try:
            axis_names.check(name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    wanted = [mesh_axes(rules.get(name)) if name else () for name in names]
    used = [axis for over in wanted for axis in over]
    twice = sorted({axis for axis in used if used.count(axis) > 1})
    if twice:
        raise ValueError(
            f"{path}: the mesh axis {', '.join(twice)} would split two axes of {names}; give the rules of "
            "these names different mesh axes"
        )
    spec, fallbacks = [], []
    for size, name, over in zip(value.shape, names, wanted, strict=True):
        if size % math.prod(_axis_size(mesh, axis, name) for axis in over):
            fallbacks.append(f"{name}: {size} over {'*'.join(f'{axis}={mesh.shape[axis]}' for axis in over)}")
            over = ()
        spec.append(over if len(over) > 1 else (over[0] if over else None))
    return Placement(path, tuple(value.shape), value.dtype, names, P(*spec), tuple(fallbacks))


def _axis_size(mesh: Mesh | AbstractMesh, axis: str, name: str | None) -> int:
    if axis not in mesh.shape:
        raise ValueError(
            f"the rule for {name!r} names the mesh axis {axis!r}, the mesh has {', '.join(mesh.shape)}"
        )
    return mesh.shape[axis]


def check_rules(rules: Rules) -> None:
    """Raises ValueError for a rule whose left-hand side is not an axis name."""
    for name in rules:
        axis_names.check(name)


def placements(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> list[Placement]:
    """Where every leaf of `tree` goes, in the order of its leaves."""
    check_rules(rules)
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable)
    return [place(path_name(path), leaf, mesh, rules) for path, leaf in leaves]


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A tree like `tree` (arrays or `ShapeDtypeStruct`s) whose leaves are `NamedSharding`s."""
    check_rules(rules)

    def one(path, leaf):
        sharding = NamedSharding(mesh, place(path_name(path), leaf, mesh, rules).spec)
        return leaf.replace(sharding) if is_variable(leaf) else sharding

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_variable)


def with_shardings(tree: Any, sharding_tree: Any) -> Any:
    """`ShapeDtypeStruct`s that carry shardings: what checkpoints restore to and compilers lower for."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        sharding_tree,
    )


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
    """Sharding of every array of a batch: the leading group axis is split, nothing else."""
    return NamedSharding(mesh, P(mesh_axes(rules.get("batch")) or None))


def batch_shards(mesh: Mesh | AbstractMesh, rules: Rules) -> int:
    """Into how many parts the groups of a batch are split."""
    return math.prod(_axis_size(mesh, axis, "batch") for axis in mesh_axes(rules.get("batch")))


def check_groups(groups: int, mesh: Mesh | AbstractMesh, rules: Rules) -> None:
    """Raises ValueError unless every batch shard gets the same number of whole groups."""
    shards = batch_shards(mesh, rules)
    if groups % shards:
        share = mesh.shape.get("tensor", 1) * shards // math.gcd(groups, shards)
        raise ValueError(
            f"{groups} groups do not split over {shards} batch shards (mesh {dict(mesh.shape)}); make the "
            f"number of groups a multiple of {shards}, or let devices share a group: "
            f"sharding.strategy=fsdp_tp with sharding.mesh=tensor={share}"
        )


def host_share(mesh: Mesh, rules: Rules) -> tuple[int, int]:
    """Which part of every batch this process has to load: (part, number of parts).

    Processes whose devices hold the same groups (a tensor axis across hosts) get the same part.
    """
    parts = sorted(set(_held(mesh, rules).values()))
    return parts.index(_held(mesh, rules)[jax.process_index()]), len(parts)


def host_groups(mesh: Mesh, rules: Rules, groups: int) -> tuple[int, ...]:
    """Numbers of the groups of a global batch that this process loads, in the order of `global_batch`.

    Raises:
      ValueError: the groups do not split over the batch shards.
    """
    check_groups(groups, mesh, rules)
    size = groups // batch_shards(mesh, rules)
    held = _held(mesh, rules)[jax.process_index()]
    return tuple(shard * size + place for shard in held for place in range(size))


def _held(mesh: Mesh, rules: Rules) -> dict[int, tuple[int, ...]]:
    """Process -> numbers of the batch shards that its devices hold."""
    shards = batch_shards(mesh, rules)
    held: dict[int, set[int]] = {}
    index_of: Mapping[Any, Any] = batch_sharding(mesh, rules).devices_indices_map((shards,))
    for device, index in index_of.items():
        held.setdefault(device.process_index, set()).add(index[0].start or 0)
    found = {process: tuple(sorted(part)) for process, part in held.items()}
    if sum(map(len, set(found.values()))) != shards:
        raise ValueError(
            f"the processes hold overlapping parts of the batch ({sorted(set(found.values()))}); order the "
            "mesh axes so that the batch axes come first"
        )
    return found


def global_batch(mesh: Mesh, rules: Rules, host_batch: Any) -> Any:
    """Joins what every process loaded into global arrays; `host_batch` leads with this process' groups."""
    sharding = batch_sharding(mesh, rules)
    groups = jax.tree.leaves(host_batch)[0].shape[0] * host_share(mesh, rules)[1]
    check_groups(groups, mesh, rules)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), host_batch)


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows that this process holds of an array whose leading axis is split like a batch, in order.

    What `global_batch` joined comes apart again: the first rows are those of this process' first group.
    """
    rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])
