# SPDX-License-Identifier: Apache-2.0
"""Reading a golden folder: arrays are stored small and come back as the official code had them."""

import json
import pathlib

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


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
