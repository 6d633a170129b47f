# SPDX-License-Identifier: Apache-2.0
"""How golden weights reach a model: from memory, or through files in the official layout and Orbax."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vllm2_jax.convert import rules
from vllm2_jax.convert.checkpoint import open_checkpoint
from vllm2_jax.convert.rules import Plan, Table
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.exporting import Source
from vllm2_jax.train.streaming import lazy_leaves, weights_folder

through_orbax = False  # `python -m tests.parity --through-orbax` sets it


def load(tensors: Mapping[str, np.ndarray], table: Table, model: Any) -> Any:
    """`rules.load`; or the same by way of the disk: written, converted, loaded as training loads weights."""
    if not through_orbax or not tensors:
        return rules.load(tensors, table, model)
    leaves, treedef = flatten_paths(model)
    plan = Plan.make(table, {path: tuple(leaf.shape) for path, leaf in leaves.items()})
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_file(
            {key: np.ascontiguousarray(array) for key, array in tensors.items()}, folder / "model.safetensors"
        )
        stored = open_checkpoint(folder)
        plan.check({key: tensor.shape for key, tensor in stored.items()})
        with weights_folder(folder / "converted", lazy_leaves(plan, stored)):
            pass
        if isinstance(model, nnx.Module):
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in leaves.values()]
            return load_weights(folder / "converted", jax.tree.unflatten(treedef, placed))
        source = Source.open(folder / "converted")
        return jax.tree.unflatten(treedef, [jnp.asarray(source.read(p), x.dtype) for p, x in leaves.items()])
