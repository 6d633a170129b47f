# SPDX-License-Identifier: Apache-2.0
"""Compiled programs in files: compiled once, on any machine, and started where the devices are.

A file holds one program for one topology. It runs only under the versions of jax and libtpu that made it, on
devices of the same kind and number. Loading runs what the file says: open only files you trust.
"""

import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable


def save(path: pathlib.Path, program: Any, devices: Sequence[Any], *, topology: str) -> int:
    """Writes a compiled program; returns the size of the file in bytes.

    Args:
      path: of the file.
      program: `jax.stages.Compiled`.
      devices: those of its mesh, in the order of the flattened grid.
      topology: what it was compiled for, as `sharding.mesh.find_devices` names it.
    """
    blob, inputs, outputs = serialize_executable.serialize(program)
    saved = {
        "topology": topology,
        "jax": jax.__version__,
        "devices": (devices[0].device_kind, len(devices)),
        "program": blob,
        "inputs": inputs,
        "outputs": outputs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(saved))
    return path.stat().st_size


def load(path: pathlib.Path, devices: Sequence[Any]) -> Any:
    """The program of a file, ready to be called on these devices.

    Args:
      path: of the file.
      devices: those of the mesh, as when it was compiled.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another version of jax, devices of another kind or number, or devices of a topology that are
        not there.
    """
    saved = pickle.loads(path.read_bytes())
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
    return serialize_executable.deserialize_and_load(
        saved["program"], saved["inputs"], saved["outputs"], devices[0].client, devices
    )


def _attached(device: Any) -> bool:
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # no such platform here
        return False
