# SPDX-License-Identifier: Apache-2.0
"""The collectives of a compiled program: how many of each kind, over which mesh axes, how many bytes.

Devices are numbered in the program as they stand in the flattened mesh; the devices of a group differ in the
coordinates of the axes that the collective goes over.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vllm2_jax.sharding.costs import part_of
from vllm2_jax.sharding.program import Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Bytes a device sends in a ring of k devices, as a multiple of the whole (gathered, reduced) array.
_SENT = {
    "all-gather": lambda k: (k - 1) / k,
    "reduce-scatter": lambda k: (k - 1) / k,
    "all-reduce": lambda k: 2 * (k - 1) / k,
    "all-to-all": lambda k: (k - 1) / k,
    "collective-permute": lambda k: 1.0,
}

# Names that libtpu has for what goes between slices, where they are others.
_BETWEEN_SLICES = {"one-to-one": "collective-permute"}

_NAMED = r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: of `COLLECTIVES`; what goes between slices has "dcn " before it.
      axes: mesh axes it goes over; "slices" for the network between slices.
      group: devices that take part in one.
      times: how often it runs.
      bytes: of the whole array, gathered or before it is scattered, in one run.
      part: of the model, see `costs.part_of`.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    times: int
    bytes: int
    part: str

    @property
    def sent(self) -> float:
        """Bytes that one device sends in all runs together."""
        return self.times * self.bytes * _SENT[self.kind.removeprefix("dcn ")](self.group)


def collectives(program: Program, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """All collectives of a program.

    A TPU's asynchronous collective is written down in each fusion that it runs beside: the same bytes, line
    of code and channel number. It counts once. (The channel alone does not tell: `shard_map` uses one twice.)

    Args:
      program: parsed.
      mesh: axis -> size, over all slices.
      slices: TPU slices joined by the data-centre network.

    Raises:
      ValueError: a transfer between slices, or groups of devices, in a form that this reader does not know.
    """
    found: dict[tuple[Any, ...], Collective] = {}
    for name, times in program.executions()[0].items():
        bodies = [body for i in program.computations[name].values() for body in program.bodies(i)]
        for where in (name, *bodies):
            for instruction in program.computations[where].values():
                one = _collective(instruction, where, mesh, slices, times, program)
                if one is None:
                    continue
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                name_of = channel[1] if channel else f"{where}/{instruction.name}"
                key = (one.kind, one.axes, one.bytes, instruction.frame, name_of)
                if key not in found or found[key].times < one.times:
                    found[key] = one
    return list(found.values())


def _collective(
    instruction: Instruction,
    where: str,
    mesh: Mapping[str, int],
    slices: int,
    times: int,
    program: Program,
) -> Collective | None:
    opcode, computation = instruction.opcode.removesuffix("-start"), program.computations[where]
    size = sum(leaf.size for name in instruction.operands for leaf in computation[name].leaves)
    part = part_of(instruction, program)
    if opcode == "send" and "_xla_megascale_transfer_type" in instruction.rest:
        (kind,) = re.findall(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        kind = kind.lower().replace("_", "-")
        kind = _BETWEEN_SLICES.get(kind, kind)
        if kind not in COLLECTIVES:
            raise ValueError(f"{where}/{instruction.name}: unknown transfer between slices {kind!r}")
        whole = size * slices if kind == "all-gather" else size
        return Collective(f"dcn {kind}", ("slices",), slices, times, whole, part)
    if opcode not in COLLECTIVES:
        return None
    if opcode == "all-reduce" and where.startswith("all-reduce-scatter"):
        opcode = "reduce-scatter"  # how a TPU writes it: a fusion that keeps a slice of the sum
    axes, group = mesh_axes(instruction, mesh)
    return Collective(opcode, axes, group, times, size * (group if opcode == "all-gather" else 1), part)


def mesh_axes(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes that a collective goes over, and the number of devices in one group.

    Raises:
      ValueError: groups in a form that this reader does not know.
    """
    members = _groups(instruction.rest, math.prod(mesh.values()))
    places = np.stack(np.unravel_index(members, tuple(mesh.values())), axis=-1)
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(axis for axis, is_over in zip(mesh, differ, strict=True) if is_over), members.shape[1]


def _groups(text: str, devices: int) -> np.ndarray:
    """Numbers of the devices, one group a row. The forms are those of XLA's text."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
    if pairs:
        return np.array([list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
    start = text.partition("replica_groups=")[2]
    if start.startswith("{{"):
        rows = re.findall(r"\{([\d,]+)\}", start[: start.index("}}") + 2])
        return np.array([list(map(int, row.split(","))) for row in rows])
    if start.startswith("{}"):
        return np.arange(devices)[None]
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", start)
    if iota:
        return _iota(iota[2], iota[3]).reshape([int(x) for x in iota[1].split(",")])
    named = re.match(_NAMED, start)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        order = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
        return _named(order, sizes, re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[4]))
    raise ValueError(f"unknown form of replica groups: {start[:120]!r}")


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """`[4,2]T(1,0)`: counted in one shape, read in another order of its axes."""
    shape = [int(x) for x in sizes.split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(x) for x in order.split(",")]) if order else numbers).reshape(-1)


def _named(order: np.ndarray, sizes: dict[str, int], over: list[tuple[str, str, str]]) -> np.ndarray:
    """Groups along some axes, or along a part of an axis: `'x':(2)4` are 4 inside 2 outer ones."""
    shape: list[int] = []
    inside: list[int] = []
    for name, size in sizes.items():
        part = next((entry for entry in over if entry[0] == name), None)
        if part is None or not part[1]:
            inside += [len(shape)] if part else []
            shape.append(size)
        else:
            before, middle = int(part[1]), int(part[2])
            inside.append(len(shape) + 1)
            shape += [before, middle, size // before // middle]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    count = math.prod(shape[axis] for axis in inside)
    return order.reshape(shape).transpose([*outside, *inside]).reshape(-1, count)


@dataclasses.dataclass(frozen=True)
class Total:
    """Collectives of one kind over the same axes: how many, how many runs, bytes that a device sends."""

    kind: str
    axes: tuple[str, ...]
    count: int
    times: int
    sent: float


def totals(found: list[Collective]) -> list[Total]:
    """Summed by kind and axes, those that send most first."""
    table: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for one in found:
        table.setdefault((one.kind, one.axes), []).append(one)
    rows = [
        Total(kind, axes, len(some), sum(one.times for one in some), sum(one.sent for one in some))
        for (kind, axes), some in table.items()
    ]
    return sorted(rows, key=lambda row: -row.sent)
