# SPDX-License-Identifier: Apache-2.0
"""Reading a golden folder: arrays are stored small and come back as the official code had them."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
from safetensors.numpy import load_file


def config(folder: pathlib.Path) -> dict:
    """Sizes, seeds and token ids of the golden set."""
    return json.loads((folder / "config.json").read_text())


def arrays(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of `<name>.npz`; float16 stands for float32 that happens to be exact."""
    with np.load(folder / f"{name}.npz") as file:
        return {key: _widen(file[key]) for key in file.files}


def weights(folder: pathlib.Path, name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Official parameters of `<name>.safetensors` whose name starts with `prefix`, which is cut off."""
    tensors = load_file(folder / f"{name}.safetensors")
    return {key[len(prefix) :]: _widen(value) for key, value in tensors.items() if key.startswith(prefix)}


def listed(data: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """The list argument `in/<name>.0`, `in/<name>.1`, ... of a forward pass; empty if it was not given."""
    found = []
    while (key := f"in/{name}.{len(found)}") in data:
        found.append(data[key])
    return found


def probe(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """The cotangent that recorded gradients were taken with: a cosine over the flat index."""
    return np.cos(0.7 * np.arange(np.prod(shape)) + phase).astype(np.float32).reshape(shape)


def stats(x: np.ndarray) -> np.ndarray:
    """What stands for a tensor that is too large to store: its norm and its product with a probe."""
    flat = np.asarray(x, np.float64).ravel()
    return np.array([np.sqrt((flat**2).sum()), (flat * probe(flat.shape, 0.3)).sum()], np.float32)


def finite(name: str, got: np.ndarray, want: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Two comparisons of a tensor with infinities: where they are, and all the other numbers."""
    got, where = np.asarray(got), np.isfinite(want)
    yield f"{name}, which are finite", np.isfinite(got), where
    yield name, np.where(where, got, 0), np.where(where, want, 0)


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
