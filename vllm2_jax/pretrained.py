# SPDX-License-Identifier: Apache-2.0
"""A model with its weights, from a folder or from the hub, straight into sharded arrays."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vllm2_jax.convert import visionllmv2
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding.partition import shardings, with_shardings
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.released import COMPONENTS, Released, open_released, reopen

SMALL_FILES = ("*.json", "*.model")  # of a repository: config, index, tokenizer


def from_pretrained(
    source: str | pathlib.Path,
    *,
    mesh: Mesh,
    strategy: Strategy,
    dtype: DTypeLike = "bfloat16",
    decoders: Collection[str] | None = None,
) -> VisionLLMv2:
    """The model of a checkpoint, sharded over `mesh`. Also `VisionLLMv2.from_pretrained`.

    Args:
      source: a folder that launch.convert wrote (each host reads what its devices hold), a folder in the
        official layout (each host reads every leaf, one at a time), or a repository of the hub, which is
        downloaded first; a broken download goes on where it stopped.
      mesh, strategy: where arrays go.
      dtype: of all parameters.
      decoders: those that the model shall have, such as ("grounding_dino",); None takes all.

    Raises:
      ConversionError: the folder is damaged or does not fit; lists everything. Or there is no such folder and
        no such repository, or it lacks one of the decoders.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        folder = download(str(source))
    converted = (folder / "0" / "state").is_dir()
    released = _reopen(folder, decoders) if converted else _open(folder, decoders)
    abstract: Any = jax.eval_shape(lambda: VisionLLMv2(released.config, rngs=Rngs(0)))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
    model = with_shardings(abstract, shardings(abstract, mesh, strategy.rules))
    if converted:
        return load_weights(folder, model)
    return visionllmv2.load(released.tensors, model, released.config)


def _reopen(folder: pathlib.Path, decoders: Collection[str] | None) -> Released:
    """A converted folder with some of its decoders."""
    released = reopen(folder)
    if decoders is None:
        return released
    found = released.config.decoders
    _all_there(folder, decoders, found)
    config = dataclasses.replace(released.config, decoders={name: found[name] for name in decoders})
    return dataclasses.replace(released, config=config)


def _open(folder: pathlib.Path, decoders: Collection[str] | None) -> Released:
    """A folder in the official layout with some of its decoders."""
    if decoders is None:
        return open_released(folder)
    others = [part for part in COMPONENTS.values() if not part.startswith("decoders/")]
    released = open_released(folder, [*others, *(f"decoders/{name}" for name in decoders)])
    _all_there(folder, decoders, released.config.decoders)
    return released


def _all_there(folder: pathlib.Path, wanted: Collection[str], found: Collection[str]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise ConversionError(
            f"{folder} has no decoder {', '.join(missing)}; it has {', '.join(found) or 'none'}"
        )


def download(repository: str) -> pathlib.Path:
    """The local folder of a repository of the hub; its weights as safetensors if it has them, else as .bin.

    Raises:
      ConversionError: it cannot be found or reached, and is not in the cache.
    """
    from huggingface_hub import snapshot_download  # takes a second, and only a download needs it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = pathlib.Path(snapshot_download(repository, allow_patterns=[*SMALL_FILES, weights]))
            if next(folder.glob(weights), None):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{repository} is no folder, and the hub does not give it: {first}; correct the name, log in "
            "with `hf auth login`, or download it elsewhere and give its folder"
        ) from error
    raise ConversionError(f"{repository} has neither safetensors nor .bin files at its root")
