# SPDX-License-Identifier: Apache-2.0
"""A model with its weights, from a folder or from the hub, straight into sharded arrays."""

import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vllm2_jax.convert import visionllmv2
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding.partition import shardings, with_shardings
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.released import open_released, reopen


def from_pretrained(
    source: str | pathlib.Path, *, mesh: Mesh, strategy: Strategy, dtype: DTypeLike = "bfloat16"
) -> VisionLLMv2:
    """The model of a checkpoint, sharded over `mesh`.

    Args:
      source: a folder that launch.convert wrote (each host reads what its devices hold), a folder in the
        official layout (each host reads every leaf, one at a time), or a repository of the hub, which is
        downloaded first; a broken download goes on where it stopped.
      mesh, strategy: where arrays go.
      dtype: of all parameters.

    Raises:
      ConversionError: the folder is damaged or does not fit; lists everything.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # only a download needs it

        folder = pathlib.Path(snapshot_download(str(source)))
    converted = (folder / "0" / "state").is_dir()
    released = reopen(folder) if converted else open_released(folder)
    abstract: Any = jax.eval_shape(lambda: VisionLLMv2(released.config, rngs=Rngs(0)))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
    model = with_shardings(abstract, shardings(abstract, mesh, strategy.rules))
    if converted:
        return load_weights(folder, model)
    return visionllmv2.load(released.tensors, model, released.config)
