# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save` (.pth, .bin) without torch: names, shapes and places of their tensors.

Since PyTorch 1.6 such a file is a zip archive, not compressed: `<name>/data.pkl` describes a tree in which a
tensor is a storage's key, offset, shape and strides, and `<name>/data/<key>` are the storage's bytes.
Unpickling can run any code; this unpickler knows storages and tensors, and makes an empty stand-in for all
else that a training script may have put beside them, such as its arguments.
"""

import dataclasses
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name; the name's and the extra's lengths end it


@dataclasses.dataclass(frozen=True)
class Place:
    """A tensor in a file: bytes from the file's start, and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Unknown:
    """Stands for an object whose class is of no interest here."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def places(path: pathlib.Path) -> tuple[dict[str, Place], list[str]]:
    """The tensors of a file by name, and the names of those that are stored with gaps or transposed.

    A tree of training scripts, with the tensors under `model` or `state_dict`, gives those.

    Raises:
      ValueError: the file ends too early, or holds no tensors by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix(
                "data.pkl"
            )
            with archive.open(f"{root}data.pkl") as stream:
                reader = _Reader(stream, archive, root, path)
                tree = reader.load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, StopIteration, EOFError, KeyError) as error:
        raise ValueError(f"no complete file of torch ({error!r})") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping):
        raise ValueError(f"a {type(tree).__name__} instead of tensors by name")
    return {key: value for key, value in tree.items() if isinstance(value, Place)}, reader.strided(tree)


@dataclasses.dataclass(frozen=True)
class _Storage:
    offset: int
    dtype: np.dtype[Any]


@dataclasses.dataclass(frozen=True)
class _Strided:
    pass


class _Reader(pickle.Unpickler):
    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str, path: pathlib.Path):
        super().__init__(stream)
        self.archive, self.root, self.path = archive, root, path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        return Unknown

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        if not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a storage of an unknown type in {self.path.name}")
        info = self.archive.getinfo(f"{self.root}data/{key}")
        with open(self.path, "rb") as stream:
            stream.seek(info.header_offset + LOCAL_HEADER - 4)
            lengths = stream.read(4)
        name, extra = (int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
        return _Storage(info.header_offset + LOCAL_HEADER + name + extra, dtype)

    @staticmethod
    def strided(tree: Mapping[str, Any]) -> list[str]:
        """Names of tensors that are not one run of bytes."""
        return [key for key, value in tree.items() if isinstance(value, _Strided)]


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> Place | _Strided:
    runs = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(stride != run for stride, run, size in zip(strides, runs, shape, strict=True) if size > 1):
        return _Strided()
    return Place(storage.offset + offset * storage.dtype.itemsize, tuple(shape), storage.dtype)
