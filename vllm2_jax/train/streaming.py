# SPDX-License-Identifier: Apache-2.0
"""Weights that are larger than memory: official tensors -> Orbax and back, one leaf at a time.

The Orbax folder is what `train.checkpoint.load_weights` reads. It is written under another name and renamed
when it is complete, so that an interrupted conversion leaves nothing that looks like a result; the next one
clears the rest away and starts again.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vllm2_jax.convert.checkpoint import DTYPES, Stored, free_bytes
from vllm2_jax.convert.rules import ConversionError, Part, Plan
from vllm2_jax.train.checkpoint import saved_tree
from vllm2_jax.train.released import NAMES, Released

# Pieces that a leaf is stored in: a host reads only those that its devices hold, and the writer compresses
# one at a time.
CHUNK_BYTES = 64 * 2**20
SHARD_BYTES = 5 * 10**9  # of the official layout
BESIDE = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "config.json"),
)


@dataclasses.dataclass(frozen=True)
class LazyLeaf:
    """A leaf that exists only while it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole leaf."""
        return self.size * self.dtype.itemsize


class LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes `LazyLeaf`s one after the other, as the arrays that they become."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Each leaf is on the disk before the next one is read."""
        for value, info, arg in zip(values, infos, args, strict=True):
            arg = dataclasses.replace(arg, chunk_byte_size=CHUNK_BYTES)
            await self._background_serialize([value.read()], [info], [arg])
        return []


@contextlib.contextmanager
def complete_or_nothing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `target` when the block ends without an error.

    Raises:
      ConversionError: `target` exists.
    """
    if target.exists():
        raise ConversionError(f"{target} exists; give another folder or remove it")
    part = target.with_name(target.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def check_space(folder: pathlib.Path, need: int) -> None:
    """Raises ConversionError if the disk has fewer than `need` free bytes."""
    free = free_bytes(folder.absolute())
    if free < need:
        raise ConversionError(
            f"{folder} needs {need / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free; make room or give "
            "another disk"
        )


def write_orbax(
    released: Released,
    target: str | pathlib.Path,
    *,
    dtype: str | None = None,
    report: Callable[[int], Any] = lambda size: None,
) -> None:
    """Official tensors become a folder of weights, with config, tokenizer and official names beside them.

    Args:
      released: what to convert.
      target: must not exist.
      dtype: of all leaves; None keeps that of the official tensor.
      report: is told the elements of each leaf that was read.

    Raises:
      ConversionError: lists all misfits, before anything is written; or the disk is too small, or the
        target exists.
    """
    target = pathlib.Path(target).absolute()
    plan, tensors = released.plan, released.tensors
    stored = check_tensors(plan, tensors)
    dtypes = {
        leaf: np.dtype(dtype or tensors[stored[parts[0].key]].dtype) for leaf, parts in plan.sources.items()
    }
    check_space(target, sum(math.prod(plan.leaves[leaf]) * dtypes[leaf].itemsize for leaf in dtypes))

    def lazy(leaf: str) -> LazyLeaf:
        def read() -> np.ndarray:
            array = plan.read(leaf, lambda key: np.asarray(tensors[stored[key]]), dtypes[leaf])
            report(array.size)
            return array

        return LazyLeaf(plan.leaves[leaf], dtypes[leaf], read)

    tree: dict[str, Any] = {}
    for leaf in plan.leaves:
        node = tree
        for name in leaf.split("/"):
            node = node.setdefault(name, {})
        node["value"] = lazy(leaf)
    registry = ocp.type_handlers.create_type_handler_registry((LazyLeaf, LazyHandler()))
    with complete_or_nothing(target) as part:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as writer:
            writer.save(part / "0" / "state", args=ocp.args.PyTreeSave({"params": tree}))
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        (part / NAMES).write_text(json.dumps(shapes) + "\n")
        for name in BESIDE:
            if (released.folder / name).is_file():
                shutil.copy(released.folder / name, part / name)


def check_tensors(plan: Plan, tensors: Mapping[str, Stored]) -> dict[str, str]:
    """`Plan.check`, and dtypes and copies of one tensor too; one error lists everything.

    Raises:
      ConversionError: lists every misfit.
    """
    wrong = []
    stored: dict[str, str] = {}
    try:
        stored = plan.check({key: tensor.shape for key, tensor in tensors.items()})
    except ConversionError as error:
        wrong = str(error).splitlines()[1:]
    for key, tensor in tensors.items():
        if (key in plan.parts or key in plan.aliases) and tensor.dtype.kind not in "fV":
            wrong.append(f"  wrong dtype: {key} is {tensor.dtype}, not a floating type")
    for name, key in plan.aliases.items():
        if name in tensors and key in tensors and not np.array_equal(tensors[name], tensors[key]):
            wrong.append(f"  differing: {name} and {key} are one parameter in the model")
    if wrong:
        raise ConversionError("\n".join(["the checkpoint does not fit the model:", *wrong]))
    return stored


def read_leaf(folder: pathlib.Path, leaf: str) -> np.ndarray:
    """One leaf of a folder that `write_orbax` or `save_weights` wrote."""
    target: dict[str, Any] = {}
    node = target.setdefault("params", {})
    for name in leaf.split("/"):
        node = node.setdefault(name, {})
    node["value"] = 0
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with ocp.PyTreeCheckpointer() as reader:
        restore = ocp.args.PyTreeRestore(item=target, restore_args=args, partial_restore=True)
        return np.asarray(jax.tree.leaves(reader.restore(folder / "0" / "state", args=restore))[0])


def write_official(
    source: str | pathlib.Path,
    plan: Plan,
    target: str | pathlib.Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[int], Any] = lambda size: None,
) -> None:
    """A folder of weights becomes safetensors under official names, with an index.

    Args:
      source: written by `write_orbax` or `save_weights`.
      plan: of the model in it.
      target: must not exist.
      shard_bytes: no file is larger, unless one tensor is.
      report: is told the elements of each tensor that was written.

    Raises:
      ConversionError: leaves that do not fit the plan, a small disk, or the target exists.
    """
    source, target = pathlib.Path(source).absolute(), pathlib.Path(target).absolute()
    flat = jax.tree_util.tree_leaves_with_path(saved_tree(source / "0" / "state")["params"])
    dtypes = {"/".join(str(key.key) for key in path[:-1]): np.dtype(leaf.dtype) for path, leaf in flat}
    if missing := sorted(plan.leaves.keys() - dtypes.keys()):
        raise ConversionError(f"{source} lacks the leaves {', '.join(missing)}")
    shards = _assign(plan, dtypes, shard_bytes)
    total = sum(size for shard in shards for _, _, _, size in shard)
    check_space(target, total)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    held: dict[str, np.ndarray] = {}

    def write(part: Part) -> np.ndarray:
        for path in [path for path in held if path not in part.paths]:
            del held[path]
        for path in part.paths:
            if path not in held:
                held[path] = read_leaf(source, path)
        layer = ... if part.layer is None else part.layer
        return np.ascontiguousarray(part.rule.transform.inverse(*(held[path][layer] for path in part.paths)))

    with complete_or_nothing(target) as folder:
        for name, shard in zip(names, shards, strict=True):
            with open(folder / name, "wb") as stream:
                stream.write(_header(shard, dtypes, plan))
                for _, key, _, _ in shard:
                    array = write(plan.parts[key])
                    stream.write(array.reshape(-1).view(np.uint8).data)
                    report(array.size)
        where = {key: name for name, shard in zip(names, shards, strict=True) for key, *_ in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        for file in BESIDE:
            if (source / file).is_file():
                shutil.copy(source / file, folder / file)


Entry = tuple[str, str, tuple[int, ...], int]


def _assign(plan: Plan, dtypes: Mapping[str, Any], shard_bytes: int) -> list[list[Entry]]:
    """Shards of (name, name of its parameter, shape, bytes); leaf after leaf, so that each is read once."""
    others: dict[str, list[str]] = {}
    for name, key in plan.aliases.items():
        others.setdefault(key, []).append(name)
    shards: list[list[Entry]] = [[]]
    room = shard_bytes
    for parts in {tuple(part.key for part in parts): parts for parts in plan.sources.values()}.values():
        for part in parts:
            layer = slice(part.layer is not None, None)
            ones = (np.broadcast_to(np.int8(0), plan.leaves[path][layer]) for path in part.paths)
            shape = part.rule.transform.inverse(*ones).shape
            size = math.prod(shape) * dtypes[part.paths[0]].itemsize
            for name in (part.key, *others.get(part.key, ())):
                if size > room and shards[-1]:
                    shards.append([])
                    room = shard_bytes
                shards[-1].append((name, part.key, shape, size))
                room -= size
    return shards


def _header(shard: list[Entry], dtypes: Mapping[str, Any], plan: Plan) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, key, shape, size in shard:
        dtype = names[dtypes[plan.parts[key].paths[0]]]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text
