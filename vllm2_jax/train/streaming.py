# SPDX-License-Identifier: Apache-2.0
"""Weights that are larger than memory: official tensors -> Orbax, one leaf at a time.

The Orbax folder is what `train.checkpoint.load_weights` reads. It is written under another name and renamed
when it is complete, so that an interrupted conversion leaves nothing that looks like a result; the next one
clears the rest away and starts again.
"""

import contextlib
import dataclasses
import errno
import functools
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
import tensorstore

from vllm2_jax.convert import lora
from vllm2_jax.convert.checkpoint import StoredTensor, free_bytes
from vllm2_jax.convert.rules import ConversionError, Plan
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.train.released import NAMES, Released, on_disk, without_adapters

# Pieces that a leaf is stored in: a host reads only those that its devices hold, and the writer compresses
# one at a time.
CHUNK_BYTES = 64 * 2**20
BATCH_BYTES = 4 * CHUNK_BYTES  # of small leaves, written together: the disk is synchronised after each batch
BESIDE = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "preprocessor_config.json", "config.json"),
)
Report = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class LazyLeaf:
    """A leaf that exists only while it is written, a large one not even as a whole.

    Attributes:
      shape, dtype: of the leaf.
      read: rows of its first axis.
      stacked: whether reading all rows takes no less than reading them a few at a time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[slice], np.ndarray]
    stacked: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole leaf."""
        return self.size * self.dtype.itemsize

    def pieces(self) -> list[slice]:
        """Rows to be read at once."""
        if not self.stacked or self.nbytes <= BATCH_BYTES:
            return [slice(None)]
        count = max(1, BATCH_BYTES * self.shape[0] // self.nbytes)
        starts = range(0, self.shape[0], count)
        return [slice(first, min(first + count, self.shape[0])) for first in starts]

    def held(self) -> "LazyLeaf":
        """The leaf, read already."""
        array = self.read(slice(None))
        return dataclasses.replace(self, read=lambda rows: array[rows])

    def told(self, report: Report) -> "LazyLeaf":
        """The leaf, whose reading is reported."""

        def read(rows: slice) -> np.ndarray:
            array = self.read(rows)
            report(array.size)
            return array

        return dataclasses.replace(self, read=read)


class LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes `LazyLeaf`s as the arrays that they become: a large one in pieces, small ones together."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Each batch is on the disk before the next one is read."""
        args = [dataclasses.replace(arg, **_chunks(value)) for value, arg in zip(values, args, strict=True)]
        first = 0
        while first < len(values):
            last, room = first + 1, BATCH_BYTES - values[first].nbytes
            while last < len(values) and values[last].nbytes <= room:
                room -= values[last].nbytes
                last += 1
            batch = slice(first, last)
            # Read here, not where the writes of a batch run side by side: if reading fails, none is left.
            large = len(values[first].pieces()) > 1
            leaves = [value if large else value.held() for value in values[batch]]
            await self._background_serialize(leaves, infos[batch], args[batch])
            first = last
        return []

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
        """What `NumpyHandler` does with a whole array, piece by piece."""
        store = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
        for rows in value.pieces():
            array = value.read(rows)
            await store[rows].write(array, can_reference_source_data_indefinitely=True)


def _chunks(leaf: LazyLeaf) -> dict[str, Any]:
    """How a leaf is cut in the store: layers lie apart where they are written and read apart."""
    apart = leaf.stacked and leaf.nbytes > CHUNK_BYTES
    return {"chunk_byte_size": CHUNK_BYTES, "shard_axes": (0,) if apart else ()}


@contextlib.contextmanager
def complete_or_nothing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `target` when the block ends without an error.

    Raises:
      ConversionError: `target` exists or cannot be made, or the disk is full.
    """
    if target.exists():
        raise ConversionError(f"{target} exists; give another folder or remove it")
    part = target.with_name(target.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except (NotADirectoryError, FileExistsError, FileNotFoundError, PermissionError) as error:
        raise ConversionError(f"{target} cannot be made ({error.strerror}); give another folder") from error
    try:
        yield part
        os.replace(part, target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        # Writers in C++ put the system's message into errors of their own.
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise ConversionError(f"the disk of {target} is full; make room or give another disk") from error
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
    merge_lora: bool = False,
    report: Report = lambda size: None,
    run_config: Mapping[str, Any] | None = None,
) -> None:
    """Official tensors become a folder of weights, with config, tokenizer and official names beside them.

    Args:
      released: what to convert.
      target: must not exist.
      dtype: of all leaves; None keeps that of the official tensor.
      merge_lora: adapters are added to the kernels they belong to.
      report: is told the elements of each leaf, or piece of one, that was read.
      run_config: config of a run with this model, JSON-like, stored where a run has it: the folder can then
        be asked like a run's workdir.

    Raises:
      ConversionError: the disk is too small or full, the target exists or is in a bucket, or there are no
        adapters to merge.
    """
    result = without_adapters(released) if merge_lora else released
    leaves = lazy_leaves(released.plan, released.tensors, dtype)
    adapters = released.config.llm.lora
    if merge_lora and adapters is not None:
        leaves = {path: _merged(path, leaves, adapters) for path in result.plan.leaves}
    shapes = {name: released.tensors[key].shape for key, name in result.names.items()}
    with weights_folder(target, leaves, report) as part:
        (part / NAMES).write_text(json.dumps(shapes) + "\n")
        copy_beside(released.folder, part)
        if run_config is not None:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
                writer.save(part / "0" / "config", args=ocp.args.JsonSave(dict(run_config)))


def lazy_leaves(
    plan: Plan, tensors: Mapping[str, StoredTensor], dtype: str | None = None
) -> dict[str, LazyLeaf]:
    """All leaves of a plan from the tensors of a checkpoint that fits it; nothing is read yet.

    Args:
      plan: of the model.
      tensors: by official name.
      dtype: of all leaves; None keeps that of the official tensor.
    """
    stored = plan.stored(tensors)

    def read(leaf: str, kind: np.dtype[Any], rows: slice) -> np.ndarray:
        return plan.read(leaf, lambda key: np.asarray(tensors[stored[key]]), kind, rows)

    leaves = {}
    for leaf, shape in plan.leaves.items():
        kind = np.dtype(dtype or tensors[stored[plan.sources[leaf][0].key]].dtype)
        leaves[leaf] = LazyLeaf(shape, kind, functools.partial(read, leaf, kind), plan.stacked(leaf))
    return leaves


def _merged(path: str, leaves: Mapping[str, LazyLeaf], adapters: LoRAConfig) -> LazyLeaf:
    """The leaf, with its adapter added if it has one."""
    if not lora.adapted(path, leaves):
        return leaves[path]
    read = functools.partial(lora.merged, path, lambda name, rows: leaves[name].read(rows), adapters)
    return dataclasses.replace(leaves[path], read=read)


@contextlib.contextmanager
def weights_folder(
    target: str | pathlib.Path, leaves: Mapping[str, LazyLeaf], report: Report = lambda size: None
) -> Iterator[pathlib.Path]:
    """Writes leaves into a folder that `load_weights` reads; the block may put more files into it.

    Args:
      target: must not exist; it appears when the block is done.
      leaves: by path.
      report: is told the elements of each leaf, or piece of one, that was read.

    Raises:
      ConversionError: the disk is too small or full, or the target exists or is in a bucket.
    """
    target = on_disk(target).absolute()
    check_space(target, sum(leaf.nbytes for leaf in leaves.values()))
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path.split("/"):
            node = node.setdefault(name, {})
        node["value"] = leaf.told(report)
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyLeaf, LazyHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    with complete_or_nothing(target) as part:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as writer:
            writer.save(part / "0" / "state", args=ocp.args.PyTreeSave({"params": tree}))
        yield part


def copy_beside(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies config and tokenizer from one folder to another."""
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
