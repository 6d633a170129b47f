# SPDX-License-Identifier: Apache-2.0
"""Weights that are larger than memory: Orbax -> official tensors, a few leaves at a time."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from vllm2_jax.convert import lora
from vllm2_jax.convert.checkpoint import DTYPES
from vllm2_jax.convert.rules import ConversionError, Part, Plan
from vllm2_jax.train.checkpoint import saved_tree, state_folder
from vllm2_jax.train.released import Released, without_adapters
from vllm2_jax.train.streaming import Report, check_space, complete_or_nothing, copy_beside

SHARD_BYTES = 5 * 10**9  # of the official layout
READ_BYTES = 256 * 10**6  # small leaves are read together: opening a checkpoint takes longer than they do


class Entry(NamedTuple):
    """One tensor of the official layout: its name in the files, its plain name, what it is."""

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Source:
    """Leaves of a folder of weights.

    Attributes:
      folder: the newest `state`.
      place: leaf -> the part of the state that holds it, `params` or `frozen`.
      dtypes: of the leaves.
      shapes: of the leaves.
    """

    folder: pathlib.Path
    place: Mapping[str, str]
    dtypes: Mapping[str, np.dtype[Any]]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> "Source":
        """A folder that `write_orbax` or `save_weights` wrote, or the workdir of a run (its newest step)."""
        state = state_folder(folder)
        tree = saved_tree(state)
        place, dtypes, shapes = {}, {}, {}
        for part in ("params", "frozen"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree.get(part) or {}):
                name = "/".join(str(key.key) for key in path).removesuffix("/value")
                place[name], dtypes[name], shapes[name] = part, np.dtype(leaf.dtype), tuple(leaf.shape)
        return cls(state, place, dtypes, shapes)

    def read(self, leaves: Iterable[str]) -> dict[str, np.ndarray]:
        """Leaves by path, in memory."""
        target: dict[str, Any] = {}
        for leaf in leaves:
            node = target.setdefault(self.place[leaf], {})
            for name in leaf.split("/"):
                node = node.setdefault(name, {})
            node["value"] = 0
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        with ocp.PyTreeCheckpointer() as reader:
            restore = ocp.args.PyTreeRestore(item=target, restore_args=args, partial_restore=True)
            parts = reader.restore(self.folder, args=restore)
        return {
            "/".join(str(key.key) for key in path).removesuffix("/value"): np.asarray(leaf)
            for part in parts.values()
            for path, leaf in jax.tree_util.tree_leaves_with_path(part)
        }


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export writes, in the order in which it is read.

    Attributes:
      source: the weights.
      released: config, names and plan of the result.
      adapters: of the language model if they are merged, else None.
    """

    source: Source
    released: Released
    adapters: Any = None

    @classmethod
    def plan(cls, folder: str | pathlib.Path, released: Released, *, merge_lora: bool = False) -> "Export":
        """Raises ConversionError: leaves that are missing or misshapen, or no adapters to merge."""
        source = Source.open(folder)
        wrong = [
            f"{leaf}: {source.shapes.get(leaf, 'missing')}, the model has {shape}"
            for leaf, shape in released.plan.leaves.items()
            if source.shapes.get(leaf) != shape
        ]
        if wrong:
            lines = "\n  ".join(wrong)
            raise ConversionError(f"{folder} does not hold the weights of {released.folder}:\n  {lines}")
        if merge_lora:
            return cls(source, without_adapters(released), released.config.llm.lora)
        return cls(source, released)

    def entries(self) -> Iterator[Entry]:
        """All tensors, those that are read together one after the other; buffers last."""
        plan, names = self.released.plan, self.released.names
        others = _others(plan)
        for part in (part for group in self._groups() for parts in group for part in parts):
            shape = self._shape(part)
            for key in (part.key, *others.get(part.key, ())):
                if key in names:
                    yield Entry(names[key], key, shape, self.source.dtypes[part.paths[0]])
        for key, buffer in plan.buffers.items():
            if key in names:
                value = buffer.value()
                yield Entry(names[key], key, value.shape, value.dtype)

    def tensors(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """The same with their values; as much in memory as is read at once."""
        entries = {entry.key: entry for entry in self.entries()}
        plan = self.released.plan
        others = _others(plan)
        for group in self._groups():
            held = self._read({path for parts in group for part in parts for path in part.paths})
            for part in (part for parts in group for part in parts):
                layer = ... if part.layer is None else part.layer
                turned = part.rule.transform.inverse(*(held[path][layer] for path in part.paths))
                array = np.ascontiguousarray(turned)
                for key in (part.key, *others.get(part.key, ())):
                    if key in entries:
                        yield entries[key], array
        for key, buffer in plan.buffers.items():
            if key in entries:
                yield entries[key], buffer.value()

    def _read(self, paths: set[str]) -> dict[str, np.ndarray]:
        if self.adapters is None:
            return self.source.read(paths)
        adapted = {path for path in paths if lora.adapted(path, self.source.place)}
        found = self.source.read(paths - adapted)
        for path in adapted:
            found[path] = lora.merged(path, lambda leaf: self.source.read([leaf])[leaf], self.adapters)
        return found

    def _shape(self, part: Part) -> tuple[int, ...]:
        layer = slice(part.layer is not None, None)
        leaves = self.released.plan.leaves
        ones = (np.broadcast_to(np.int8(0), leaves[path][layer]) for path in part.paths)
        return part.rule.transform.inverse(*ones).shape

    def _groups(self) -> Iterator[list[Sequence[Part]]]:
        """Leaves (by their parts) to read at once: one large one, or small ones together."""
        plan = self.released.plan
        group: list[Sequence[Part]] = []
        room = READ_BYTES
        for parts in {tuple(part.key for part in parts): parts for parts in plan.sources.values()}.values():
            paths = {path for part in parts for path in part.paths}
            size = sum(math.prod(plan.leaves[path]) * self.source.dtypes[path].itemsize for path in paths)
            if size > room and group:
                yield group
                group, room = [], READ_BYTES
            group.append(parts)
            room -= size
        yield group


def write_official(
    export: Export,
    target: str | pathlib.Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda size: None,
) -> None:
    """A folder of weights becomes safetensors under official names, with an index.

    Args:
      export: what to write.
      target: must not exist.
      shard_bytes: no file is larger, unless one tensor is.
      report: is told the elements of each tensor that was written.

    Raises:
      ConversionError: a small or full disk, or the target exists.
    """
    target = pathlib.Path(target).absolute()
    shards: list[list[Entry]] = [[]]
    room = shard_bytes
    for entry in export.entries():
        if entry.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    total = sum(entry.nbytes for shard in shards for entry in shard)
    check_space(target, total)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    with complete_or_nothing(target) as folder:
        tensors = export.tensors()
        for file, shard in zip(files, shards, strict=True):
            with open(folder / file, "wb") as stream:
                stream.write(_header(shard))
                for entry in shard:
                    found, array = next(tensors)
                    assert found == entry  # both walk the same plan
                    stream.write(array.reshape(-1).view(np.uint8).data)
                    report(array.size)
        where = {entry.name: file for file, shard in zip(files, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        copy_beside(export.released.folder, folder)


def _others(plan: Plan) -> dict[str, list[str]]:
    """Official name -> other names of the same parameter."""
    others: dict[str, list[str]] = {}
    for name, key in plan.aliases.items():
        others.setdefault(key, []).append(name)
    return others


def _header(shard: list[Entry]) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        entries[entry.name] = {
            "dtype": names[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text
