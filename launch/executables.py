# SPDX-License-Identifier: Apache-2.0
"""Compiled programs in files: compiled once, on any machine, and started where the devices are.

A file holds one program for one topology. It runs only under the versions of jax and libtpu that made it, on
devices of the same kind and number, and trains only by the config it was made for: rates, sizes and seeds are
constants in it. Loading runs what the file says: open only files you trust.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import serialize_executable

from vllm2_jax.train.paths import PathLike, place

# What no program depends on: the loop, the reading of data, where a run starts, and the devices, which are
# compared themselves.
_LOOP = {"log_every", "save_every", "keep", "bad_steps", "profile_first", "profile_steps"}
_READING = {"data.root", "data.workers", "data.threads", "data.prefetch", "data.timeout"}
_OUTSIDE = _LOOP | _READING | {"init", "parts", "eval", "sharding.devices"}


def save(
    path: PathLike,
    program: Any,
    devices: Sequence[Any],
    *,
    name: str,
    config: ml_collections.ConfigDict,
) -> int:
    """Writes a compiled program; returns the size of the file in bytes.

    Args:
      path: of the file, may be in a bucket.
      program: `jax.stages.Compiled`.
      devices: those of its mesh, in the order of the flattened grid.
      name: of the program, as `programs.make_job` takes it.
      config: that it was made from; `config.sharding.devices` is what it was compiled for.
    """
    blob, inputs, outputs = serialize_executable.serialize(program)
    saved = {
        "name": name,
        "settings": _settings(config),
        "topology": config.sharding.devices,
        "jax": jax.__version__,
        "devices": (devices[0].device_kind, len(devices)),
        "program": blob,
        "inputs": inputs,
        "outputs": outputs,
    }
    written = pickle.dumps(saved)
    place(path).parent.mkdir(parents=True, exist_ok=True)
    place(path).write_bytes(written)
    return len(written)


def load(path: PathLike, devices: Sequence[Any], *, name: str, config: ml_collections.ConfigDict) -> Any:
    """The program of a file, ready to be called on these devices.

    Args:
      path: of the file.
      devices: those of the mesh, as when it was compiled.
      name, config: which program is wanted, and from what.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another program, or one of another config; another version of jax; devices of another kind
        or number, of a topology that is not there, or with other numbers (as virtual CPU devices of several
        processes have).
    """
    try:
        saved = pickle.loads(place(path).read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; launch.compile --save writes it") from error
    except Exception as error:  # of what is no pickle Python raises any kind
        if isinstance(error, OSError) and not isinstance(error, IsADirectoryError):
            raise
        raise ValueError(f"{path} is no saved program, or damaged: compile it again ({error})") from error
    if saved["name"] != name:
        raise ValueError(f"{path} holds the program {saved['name']!r}, not {name!r}")
    if differences := _differences(saved["settings"], _settings(config)):
        raise ValueError(
            f"{path} was compiled from another config: {'; '.join(differences)}. Set them alike, or compile "
            "it again"
        )
    if saved["jax"] != jax.__version__:
        raise ValueError(
            f"{path} was compiled by jax {saved['jax']}, this is jax {jax.__version__}: compile it again "
            f"(python -m launch.compile --topology {saved['topology']} --save {path})"
        )
    # Said before the library is asked: it ends the process if the number of devices is wrong.
    if saved["devices"] != (devices[0].device_kind, len(devices)):
        kind, count = saved["devices"]
        raise ValueError(
            f"{path} was compiled for {count} devices of kind {kind!r} ({saved['topology']}), these are "
            f"{len(devices)} of kind {devices[0].device_kind!r}: compile it for them"
        )
    if not _attached(devices[0]):
        raise ValueError(
            f"{path} is for {saved['topology']}, whose devices are not attached here: programs can be "
            "compiled for a topology, but are loaded where its chips are"
        )
    try:
        return serialize_executable.deserialize_and_load(
            saved["program"], saved["inputs"], saved["outputs"], devices[0].client, devices
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{path} cannot be loaded on these devices: {error}") from error


def check_can_run(devices: Sequence[Any]) -> None:
    """Raises ValueError for devices that a loaded program cannot be trusted to run on, though it loads.

    On two virtual CPU devices, runs under jax 0.10.2 stood still within a few steps and were aborted: one
    device waited for the other in an all-reduce, that one in an all-gather.
    """
    if devices[0].platform == "cpu" and len(devices) > 1:
        raise ValueError(
            f"a loaded program does not run on {len(devices)} CPU devices: XLA's devices wait for each other "
            "in different collectives. Train without --executable, or with --config.sharding.devices=cpu:1"
        )


def _attached(device: Any) -> bool:
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # no such platform here
        return False


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All that a program may depend on: dotted key -> value as JSON has it."""

    def flat(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in entries.items():
            key = prefix + key
            if key not in _OUTSIDE:
                found |= flat(key + ".", value) if isinstance(value, Mapping) else {key: value}
        return found

    return flat("", json.loads(config.to_json_best_effort()))


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
    return [f"config.{key} was {saved.get(key)!r}, is {wanted.get(key)!r}" for key in keys]
