# SPDX-License-Identifier: Apache-2.0
"""A folder of Hugging Face, read tensor by tensor: config.json, an index, shards (safetensors or .bin).

Opening reads headers alone and checks them against the index and the sizes of the files. A tensor's bytes
are read when it becomes an array and are not mapped, so that memory holds one tensor and not the pages of a
whole shard. Format: the header of safetensors is eight bytes of length (little endian) and JSON.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

from vllm2_jax.convert.rules import ConversionError

# Names of dtypes in a safetensors header.
DTYPES: dict[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file; `numpy.asarray` reads it."""

    file: pathlib.Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        with open(self.file, "rb") as stream:
            stream.seek(self.offset)
            data = bytearray(self.nbytes)
            if stream.readinto(data) != len(data):
                raise ConversionError(f"{self.file} ends inside a tensor; download it again")
        array = np.frombuffer(data, self.dtype).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor of a .bin or .pth file that torch has mapped; `numpy.asarray` reads it."""

    file: pathlib.Path
    value: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        value = self.value.detach().contiguous()
        if self.dtype == ml_dtypes.bfloat16:  # numpy() knows no bfloat16: the bits go through int16
            import torch

            array = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = value.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)


Stored = StoredTensor | TorchTensor


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
      ConversionError: there is none, or it is no JSON object.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: {error}; give a folder in the layout of Hugging Face") from None
    if not isinstance(config, dict):
        raise ConversionError(f"{path} is no JSON object")
    return config


def open_checkpoint(folder: str | pathlib.Path) -> dict[str, Stored]:
    """All tensors of a folder by official name; nothing but headers is read.

    Raises:
      ConversionError: no weights, or files that contradict themselves, each other or the index; lists all.
    """
    folder = pathlib.Path(folder)
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    wrong: list[str] = []
    where: dict[str, str] = {}
    if index is not None:
        try:
            where = dict(json.loads(index.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError(f"{index} is no index of shards ({error!r}); download it again") from None
        files = sorted(set(where.values()))
    else:
        files = [name for name in SINGLES if (folder / name).is_file()][:1]
    if not files:
        names = ", ".join((*INDEXES, *SINGLES))
        raise ConversionError(f"no weights in {folder}: it has none of {names}")
    found: dict[str, Stored] = {}
    unreadable = set()
    for name in files:
        tensors, problems = open_file(folder / name)
        wrong += problems
        if problems:
            unreadable.add(name)
        for key, tensor in tensors.items():
            if key in found:
                wrong.append(f"duplicated: {key} is in {found[key].file.name} and in {name}")
            found[key] = tensor
            if index is not None and where.get(key, name) != name:
                wrong.append(f"wrong index: {key} is in {name}, {index.name} says {where[key]}")
            if index is not None and key not in where:
                wrong.append(f"wrong index: {key} is in {name}, {index.name} does not name it")
    for key in where.keys() - found.keys():
        if where[key] not in unreadable:
            wrong.append(f"wrong index: {key} is not in {where[key]}, where {index.name} sees it")  # type: ignore[union-attr]
    if wrong:
        lines = "\n  ".join(sorted(wrong))
        raise ConversionError(f"{folder} is damaged; download these files again:\n  {lines}")
    return found


def open_file(path: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of one file (by its suffix), and what is wrong with the file."""
    if not path.is_file():
        return {}, [f"missing file: {path.name}"]
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def _open_safetensors(path: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
    size = path.stat().st_size
    wrong: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            names = [name for name, _ in pairs]
            wrong.extend(
                f"duplicated: {name} twice in {path.name}" for name in entries if names.count(name) > 1
            )
        return entries

    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                return {}, [f"truncated: {path.name} has {size} bytes, its header alone takes {length + 8}"]
            header = json.loads(stream.read(length), object_pairs_hook=once)
    except ValueError as error:
        return {}, [f"no header of safetensors: {path.name}: {error}"]
    found: dict[str, Stored] = {}
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if entry["dtype"] not in DTYPES:
            wrong.append(f"wrong dtype: {key} in {path.name} is {entry['dtype']}, known are {list(DTYPES)}")
            continue
        start, stop = entry["data_offsets"]
        tensor = StoredTensor(path, 8 + length + start, tuple(entry["shape"]), DTYPES[entry["dtype"]])
        if tensor.nbytes != stop - start:
            wrong.append(
                f"misshapen: {key} in {path.name} has {stop - start} bytes, {tensor.nbytes} by shape"
            )
        found[key] = tensor
    need = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if need != size:
        wrong.append(
            f"{'truncated' if need > size else 'too long'}: {path.name} has {size} bytes, "
            f"its header asks for {need}"
        )
    return found, wrong


def _open_torch(path: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{path} is a file of torch, which is not installed: `pip install torch`, or take the "
            "safetensors of the same checkpoint"
        ) from None
    try:
        tree = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        return {}, [f"truncated or no file of torch: {path.name}: {error}"]
    for wrapper in ("model", "state_dict"):  # training scripts put the tensors under one of these
        if isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    dtypes = {torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}
    return {
        key: TorchTensor(
            path,
            value,
            tuple(value.shape),
            dtypes.get(value.dtype) or np.dtype(str(value.dtype).removeprefix("torch.")),
        )
        for key, value in tree.items()
    }, []


def free_bytes(folder: pathlib.Path) -> int:
    """Free bytes of the disk that holds `folder`, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
