# SPDX-License-Identifier: Apache-2.0
"""Devices -> mesh: real ones, those of a TPU topology one does not have, or none at all (reports)."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from vllm2_jax.sharding.chips import CHIPS
from vllm2_jax.sharding.strategies import STRATEGIES, Strategy


def find_strategy(name: str) -> Strategy:
    """Looks `name` up in `STRATEGIES`; raises ValueError with the known names."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown sharding strategy {name!r}; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def parse_sizes(text: str) -> dict[str, int]:
    """Reads mesh sizes such as `"fsdp=4,tensor=2"` (the form a command line can carry); "" is none."""
    sizes = {}
    for item in filter(None, text.split(",")):
        axis, equals, size = item.partition("=")
        if not equals or not size.strip().lstrip("-").isdigit():
            raise ValueError(
                f"mesh sizes {text!r}: {item!r} is not of the form axis=size, as in fsdp=4,tensor=2"
            )
        sizes[axis.strip()] = int(size)
    return sizes


def find_devices(name: str = "") -> list[Any]:
    """The devices that `name` stands for.

    Args:
      name: "" for those that are attached; "cpu:8" for the first 8 host devices; "v5e:4x4" for the devices of
        a TPU topology, which programs can be compiled for but not run on (needs libtpu); "2*v5e:4x4" for two
        such slices, joined by the data-centre network.

    Raises:
      ValueError: fewer host devices than asked for, or a topology that libtpu does not know.
    """
    if not name:
        return jax.devices()
    if re.fullmatch(r"cpu:0*[1-9]\d*", name):
        wanted, found = int(name.removeprefix("cpu:")), jax.devices("cpu")
        if wanted > len(found):
            raise ValueError(
                f"{name} wants {wanted} host devices, there are {len(found)}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} before Python starts"
            )
        return found[:wanted]
    shape = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)+)", name)
    if not shape:
        raise ValueError(f"no topology {name!r}: use a name such as v5e:4x4, v5p:4x4x4, 2*v6e:16x16 or cpu:8")
    slices, sides = int(shape[1] or 1), [int(side) for side in shape[3].split("x")]
    options: dict[str, Any] = {"num_slices": slices}
    if math.prod(sides) == 1:  # libtpu puts 2x2 chips on a host unless told otherwise
        options["chips_per_host_bounds"] = (1, 1, 1)
    if shape[2] == "v4":  # as slices run: both cores of a chip are one device
        options["chip_config_name"] = "megacore"
    try:
        topology = topologies.get_topology_desc(f"{shape[2]}:{shape[3]}", platform="tpu", **options)
    except Exception as error:  # libtpu raises several kinds of errors, none of which names the topology
        raise ValueError(
            f"no TPU topology {name!r}: the chips are {', '.join(CHIPS)}, the sides those of a slice, as in "
            "v5e:4x4, v5p:4x4x4 or v6e:16x16; install the libtpu that jax[tpu] pins. libtpu says: "
            f"{error}"
        ) from error
    return list(topology.devices)


def mesh_sizes(
    strategy: Strategy, devices: int, slices: int = 1, sizes: Mapping[str, int] | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """Resolves the -1 of a strategy.

    Args:
      strategy: the strategy.
      devices: number of all devices.
      slices: number of slices these devices form.
      sizes: replaces some of the strategy's sizes inside a slice.

    Returns:
      Mesh axis -> size inside a slice, and mesh axis -> size over slices (1 for those that stay inside).

    Raises:
      ValueError: sizes that do not multiply to the number of devices; says which size to change.
    """
    unknown = set(sizes or {}) - set(strategy.mesh)
    if unknown:
        raise ValueError(
            f"the mesh has no axis {', '.join(sorted(unknown))}; it has {', '.join(strategy.mesh)}"
        )
    if devices % slices:
        raise ValueError(f"{devices} devices do not form {slices} equal slices")
    inside = _fill({**strategy.mesh, **(sizes or {})}, devices // slices, "devices a slice")
    over = _fill({axis: strategy.dcn.get(axis, 1) for axis in strategy.mesh}, slices, "slices")
    return inside, over


def _fill(sizes: dict[str, int], total: int, what: str) -> dict[str, int]:
    """Replaces the one -1 by what is left of `total`."""
    text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if any(size < 1 and size != -1 for size in sizes.values()) or len(open_axes) > 1:
        raise ValueError(f"mesh sizes {text}: each must be positive, one of them may be -1")
    if open_axes and total % fixed == 0:
        return {**sizes, open_axes[0]: total // fixed}
    if fixed == total:
        return sizes
    culprits = [axis for axis, size in sizes.items() if size > 1] or list(sizes)
    raise ValueError(
        f"mesh sizes {text} do not divide the {total} {what}: their product is {fixed}; change the size of "
        f"{' or '.join(culprits)}" + ("" if open_axes else " (-1 takes what is left)")
    )


def count_slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices among the devices; 1 for anything that is not a multislice TPU."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(
    strategy: Strategy, devices: Sequence[Any] | None = None, sizes: Mapping[str, int] | None = None
) -> Mesh:
    """The strategy's mesh over these devices (default: all that are attached), neighbours kept together."""
    devices = list(jax.devices() if devices is None else devices)
    if math.prod(strategy.mesh.values()) == 1 and not sizes and jax.process_count() == 1:
        devices = devices[:1]  # "single" is one device by definition, however many are attached
    slices = count_slices(devices)
    inside, over = mesh_sizes(strategy, len(devices), slices, sizes)
    shape = tuple(inside.values())
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            shape, tuple(over.values()), devices=devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), tuple(inside), axis_types=(AxisType.Auto,) * len(inside))


def abstract_mesh(
    strategy: Strategy, devices: int, slices: int = 1, sizes: Mapping[str, int] | None = None
) -> AbstractMesh:
    """The same mesh without devices, for reports about pods of any size."""
    inside, over = mesh_sizes(strategy, devices, slices, sizes)
    shape = tuple(inside[axis] * over[axis] for axis in inside)
    return AbstractMesh(shape, tuple(inside), axis_types=(AxisType.Auto,) * len(inside))
