# SPDX-License-Identifier: Apache-2.0
"""Where every parameter goes and what it costs a chip, as text that reads well in a diff."""

import math
from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from vllm2_jax.sharding.partition import Placement, Rules, placements

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def bytes_per_chip(placement: Placement, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of one leaf on each device."""
    shard = NamedSharding(mesh, placement.spec).shard_shape(placement.shape)
    return math.prod(shard) * placement.dtype.itemsize


def readable(size: int) -> str:
    """A number of bytes with a unit, three digits or so."""
    for unit, factor in UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def report(title: str, parts: dict[str, tuple[Any, Rules]], mesh: Mesh | AbstractMesh) -> str:
    """The report: one line a leaf, then the totals of each part and all fallbacks.

    Args:
      title: first line, for instance the model and the strategy.
      parts: name of a part of the state -> (its tree, abstract or not; its rules).
      mesh: real or abstract.
    """
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines = [title, f"mesh: {sizes} ({mesh.size} devices)", ""]
    totals, fallbacks = [], []
    for part, (tree, rules) in parts.items():
        placed = placements(tree, mesh, rules)
        rows = [
            (
                f"{part}/{leaf.path}",
                "x".join(map(str, leaf.shape)) or "scalar",
                ",".join(axis or "-" for axis in leaf.axes) or "-",
                ",".join(_spec_entry(entry) for entry in leaf.spec) or "-",
                readable(bytes_per_chip(leaf, mesh)),
            )
            for leaf in placed
        ]
        lines += [*_table([("path", "shape", "axes", "split over", "a chip"), *rows]), ""]
        whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in placed)
        chip = sum(bytes_per_chip(leaf, mesh) for leaf in placed)
        totals.append(
            (part, f"{sum(math.prod(leaf.shape) for leaf in placed):,}", readable(whole), readable(chip))
        )
        fallbacks += [f"  {part}/{leaf.path}: {reason}" for leaf in placed for reason in leaf.fallbacks]
    lines += [*_table([("part", "numbers", "bytes", "a chip"), *totals]), ""]
    lines += ["not split because it does not divide:", *(fallbacks or ["  nothing"])]
    return "\n".join(lines) + "\n"


def _spec_entry(entry: str | tuple[str, ...] | None) -> str:
    if entry is None:
        return "-"
    return entry if isinstance(entry, str) else "*".join(entry)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
