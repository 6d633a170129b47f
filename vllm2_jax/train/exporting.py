# SPDX-License-Identifier: Apache-2.0
"""Weights that are larger than memory: Orbax -> official tensors, a leaf or a layer at a time."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore
from etils import epath

from vllm2_jax.convert import lora
from vllm2_jax.convert.checkpoint import DTYPES
from vllm2_jax.convert.rules import ConversionError, Part, Plan
from vllm2_jax.train.checkpoint import readable, saved_tree, state_folder
from vllm2_jax.train.paths import PathLike, in_bucket
from vllm2_jax.train.released import Released, on_disk, without_adapters
from vllm2_jax.train.streaming import CHUNK_BYTES, Report, check_space, complete_or_nothing, copy_beside

SHARD_BYTES = 5 * 10**9  # of the official layout
# Of the store: what it has read of its own tables.
CONTEXT = tensorstore.Context({"cache_pool": {"total_bytes_limit": 10**8}})


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

    folder: epath.Path
    place: Mapping[str, str]
    dtypes: Mapping[str, np.dtype[Any]]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: PathLike) -> "Source":
        """A folder that `write_orbax` or `save_weights` wrote, or the workdir of a run (its newest step)."""
        state = state_folder(folder)
        tree = saved_tree(state)
        place, dtypes, shapes = {}, {}, {}
        for part in ("params", "frozen"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree.get(part) or {}):
                name = "/".join(str(key.key) for key in path).removesuffix("/value")
                place[name], dtypes[name], shapes[name] = part, np.dtype(leaf.dtype), tuple(leaf.shape)
        return cls(state, place, dtypes, shapes)

    def read(self, leaf: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a leaf's first axis, in memory; nothing else is decoded if they are chunks of their own."""
        name = ".".join((self.place[leaf], *leaf.split("/"), "value"))
        where = self.folder if in_bucket(self.folder) else f"file://{self.folder}"
        base = {"driver": "ocdbt", "base": f"{where}/"}
        # A piece that is missing is an error, not zeros.
        spec = {
            "driver": "zarr",
            "kvstore": {**base, "path": f"{name}/"},
            "fill_missing_data_reads": False,
        }
        with readable(self.folder):
            store = tensorstore.open(spec, open=True, read=True, context=CONTEXT).result()
            return store[rows].read().result()


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
    def plan(cls, folder: PathLike, released: Released, *, merge_lora: bool = False) -> "Export":
        """Raises ConversionError: leaves that are missing or misshapen, or no adapters to merge."""
        source = Source.open(folder)
        wrong = [
            f"{leaf}: {source.shapes.get(leaf, 'missing')}, the model has {shape}"
            for leaf, shape in released.plan.leaves.items()
            if source.shapes.get(leaf) != shape
        ]
        if wrong:
            lines = "\n  ".join(wrong)
            raise ConversionError(
                f"{folder} does not hold the weights of {released.folder}; a run goes with the converted "
                f"folder it began with:\n  {lines}"
            )
        if merge_lora:
            return cls(source, without_adapters(released), released.config.llm.lora)
        return cls(source, released)

    def entries(self) -> Iterator[Entry]:
        """All tensors, those that are read together one after the other; buffers last."""
        plan, names = self.released.plan, self.released.names
        others = _others(plan)
        for part in (part for parts in self._groups() for part in parts):
            shape = self._shape(part)
            for key in (part.key, *others.get(part.key, ())):
                if key in names:
                    yield Entry(names[key], key, shape, self.source.dtypes[part.paths[0]])
        for key, buffer in plan.buffers.items():
            if key in names:
                value = buffer.value()
                yield Entry(names[key], key, value.shape, value.dtype)

    def tensors(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """The same with their values; one layer of a large leaf is in memory, or one small leaf."""
        entries = {entry.key: entry for entry in self.entries()}
        plan = self.released.plan
        others = _others(plan)
        for parts in self._groups():
            whole = {path: self._read(path) for path in parts[0].paths if not self._large(path)}
            for part in parts:
                layer = 0 if part.layer is None else part.layer
                rows = slice(None) if part.layer is None else slice(layer, layer + 1)
                found = [
                    whole[path][rows] if path in whole else self._read(path, rows) for path in part.paths
                ]
                if part.layer is not None:
                    found = [array[0] for array in found]
                array = np.ascontiguousarray(part.rule.transform.inverse(*found))
                for key in (part.key, *others.get(part.key, ())):
                    if key in entries:
                        yield entries[key], array
        for key, buffer in plan.buffers.items():
            if key in entries:
                yield entries[key], buffer.value()

    def _read(self, path: str, rows: slice = slice(None)) -> np.ndarray:
        if self.adapters is not None and lora.adapted(path, self.source.place):
            return lora.merged(path, self.source.read, self.adapters, rows)
        return self.source.read(path, rows)

    def _large(self, path: str) -> bool:
        """Whether a leaf is read layer by layer."""
        leaves = self.released.plan.leaves
        return math.prod(leaves[path]) * self.source.dtypes[path].itemsize > CHUNK_BYTES

    def _shape(self, part: Part) -> tuple[int, ...]:
        layer = slice(part.layer is not None, None)
        leaves = self.released.plan.leaves
        ones = (np.broadcast_to(np.int8(0), leaves[path][layer]) for path in part.paths)
        return part.rule.transform.inverse(*ones).shape

    def _groups(self) -> Iterable[Sequence[Part]]:
        """The parts of leaves that are read together, each group once."""
        groups = self.released.plan.sources.values()
        return {tuple(part.key for part in parts): parts for parts in groups}.values()


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
      ConversionError: a small or full disk, or the target exists or is in a bucket.
    """
    target = on_disk(target).absolute()
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
