# SPDX-License-Identifier: Apache-2.0
"""A folder of Hugging Face, read tensor by tensor: config.json, an index, shards (safetensors or .bin).

Opening reads headers alone and checks them against the index and the sizes of the files. A tensor's bytes
are read when it becomes an array and are not mapped, so that memory holds one tensor and not the pages of a
whole shard. Format: the header of safetensors is eight bytes of length (little endian) and JSON.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

from vllm2_jax.convert import pickled
from vllm2_jax.convert.rules import ConversionError, Misfit

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
SINGLES = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin", "diffusion_pytorch_model.bin", "mm_projector.bin"),
)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file; `numpy.asarray` reads it."""

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


@dataclasses.dataclass(frozen=True)
class Scan:
    """What the headers of a folder's files say.

    Attributes:
      tensors: official name -> tensor.
      wrong: everything that is damaged or contradicts something else.
      lost: names that the index puts into files that cannot be read.
    """

    tensors: dict[str, StoredTensor]
    wrong: list[Misfit]
    lost: frozenset[str] = frozenset()


def open_checkpoint(folder: str | pathlib.Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by official name; nothing but headers is read.

    Raises:
      ConversionError: no weights, or files that contradict themselves, each other or the index; lists all.
    """
    found = scan(folder)
    if found.wrong:
        lines = "\n  ".join(sorted(map(str, found.wrong)))
        raise ConversionError(f"{folder} is damaged; download these files again:\n  {lines}")
    return found.tensors


def scan(folder: str | pathlib.Path) -> Scan:
    """Opens all files of a folder, damaged ones as far as possible.

    Raises:
      ConversionError: there are no weights at all.
    """
    folder = pathlib.Path(folder)
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is None:
        files = [name for name in SINGLES if (folder / name).is_file()][:1]
        if not files:
            names = ", ".join((*INDEXES, *SINGLES))
            raise ConversionError(f"no weights in {folder}: it has none of {names}")
        tensors, wrong = open_file(folder / files[0])
        return Scan(tensors, wrong)
    try:
        where = {str(key): str(name) for key, name in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is no index of shards ({error!r}); download it again") from None
    found: dict[str, StoredTensor] = {}
    damage: list[Misfit] = []
    unreadable = set()
    for name in sorted(set(where.values())):
        tensors, problems = open_file(folder / name)
        damage += problems
        if not tensors:
            unreadable.add(name)
        for key, tensor in tensors.items():
            if key in found:
                damage.append(Misfit("duplicated", key, f" is in {found[key].file.name} and in {name}"))
            found[key] = tensor
            if where.get(key) != name:
                says = f"says {where[key]}" if key in where else "does not name it"
                damage.append(Misfit("wrong index", key, f" is in {name}, {index.name} {says}"))
    lost = frozenset(key for key in where.keys() - found.keys() if where[key] in unreadable)
    for key in where.keys() - found.keys() - lost:
        damage.append(Misfit("wrong index", key, f" is not in {where[key]}, where {index.name} sees it"))
    return Scan(found, damage, lost)


def open_file(path: pathlib.Path) -> tuple[dict[str, StoredTensor], list[Misfit]]:
    """The tensors of one file (by its suffix), and what is wrong with the file."""
    if not path.is_file():
        return {}, [Misfit("missing file", path.name)]
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def _open_safetensors(path: pathlib.Path) -> tuple[dict[str, StoredTensor], list[Misfit]]:
    size = path.stat().st_size
    wrong: list[Misfit] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = collections.Counter(name for name, _ in pairs)
        more = [name for name, count in names.items() if count > 1]
        wrong.extend(Misfit("duplicated", name, f" twice in {path.name}") for name in more)
        return dict(pairs)

    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                says = f" has {size} bytes, its header alone takes {length + 8}"
                return {}, [Misfit("truncated", path.name, says)]
            header = json.loads(stream.read(length), object_pairs_hook=once)
    except ValueError as error:
        return {}, [Misfit("no header of safetensors", path.name, f": {error}")]
    found: dict[str, StoredTensor] = {}
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if entry["dtype"] not in DTYPES:
            says = f" in {path.name} is {entry['dtype']}, known are {', '.join(DTYPES)}"
            wrong.append(Misfit("wrong dtype", key, says))
            continue
        start, stop = entry["data_offsets"]
        tensor = StoredTensor(path, 8 + length + start, tuple(entry["shape"]), DTYPES[entry["dtype"]])
        if tensor.nbytes != stop - start:
            says = f" in {path.name} has {stop - start} bytes, {tensor.nbytes} by shape"
            wrong.append(Misfit("misshapen", key, says))
        found[key] = tensor
    need = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if need != size:
        says = f" has {size} bytes, its header asks for {need}"
        wrong.append(Misfit("truncated" if need > size else "too long", path.name, says))
    return found, wrong


def _open_torch(path: pathlib.Path) -> tuple[dict[str, StoredTensor], list[Misfit]]:
    if not zipfile.is_zipfile(path):
        says = " is no file of torch, or an old one: load and save it with PyTorch 1.6 or newer"
        return {}, [Misfit("truncated", path.name, says)]
    try:
        found, strided = pickled.places(path)
    except ValueError as error:
        return {}, [Misfit("truncated", path.name, f": {error}")]
    wrong = [Misfit("transposed", key, f" in {path.name}: save it contiguous") for key in strided]
    return {key: StoredTensor(path, at.offset, at.shape, at.dtype) for key, at in found.items()}, wrong


def free_bytes(folder: pathlib.Path) -> int:
    """Free bytes of the disk that holds `folder`, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
