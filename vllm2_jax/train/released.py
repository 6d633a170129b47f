# SPDX-License-Identifier: Apache-2.0
"""A released checkpoint, opened: its tensors, its model's config, and which tensor fills which leaf."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from vllm2_jax.convert import lora, visionllmv2
from vllm2_jax.convert.checkpoint import StoredTensor, read_config, scan
from vllm2_jax.convert.official import model_config
from vllm2_jax.convert.rules import ConversionError, Misfit, Plan
from vllm2_jax.model import ModelConfig, VisionLLMv2
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.train.paths import PathLike, in_bucket

NAMES = "official_names.json"  # beside converted weights: official name -> shape

# Official prefix -> the part of the model that its tensors fill.
COMPONENTS = {
    "vis_encoder.": "vision",
    "vl_bridge.": "bridge",
    "region_encoder.": "regions",
    "emb_embeddings_": "queries",
    "llm.": "llm",
    "gdino.": "decoders/grounding_dino",
    "unipose.": "decoders/unipose",
    "sd.": "decoders/stable_diffusion",
    "ip2p.": "decoders/instruct_pix2pix",
}


@dataclasses.dataclass(frozen=True)
class Released:
    """What is known of a checkpoint before a tensor is read.

    Attributes:
      folder: where it lies.
      config: of the model.
      plan: which tensor fills which leaf, in plain official names (`lora.plain_name`).
      names: plain official name -> name in the files; of all tensors that are stored.
      tensors: plain official name -> tensor; none when `reopen`ed.
    """

    folder: pathlib.Path
    config: ModelConfig
    plan: Plan
    names: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]

    @property
    def size(self) -> int:
        """Parameters of the model."""
        return sum(math.prod(shape) for shape in self.plan.leaves.values())


def on_disk(folder: PathLike) -> pathlib.Path:
    """A folder whose files are read and written in place, which objects of a bucket are not.

    Raises:
      ConversionError: it is in a bucket.
    """
    if in_bucket(folder):
        raise ConversionError(f"{os.fspath(folder)} is in a bucket: give a folder on this machine")
    return pathlib.Path(folder)


def open_released(folder: str | pathlib.Path, components: Sequence[str] = ()) -> Released:
    """Opens a folder in the official layout and compares it with the model of its config.

    Args:
      folder: config.json, index, shards.
      components: parts of the model to take (values of `COMPONENTS`); none takes all.

    Raises:
      ConversionError: lists all that is damaged and all that does not fit; or an unknown component, or a
        config that is not understood, or a folder in a bucket.
    """
    folder = on_disk(folder)
    official = read_config(folder)
    if unknown := sorted(set(components) - set(COMPONENTS.values())):
        raise ConversionError(
            f"no component {', '.join(unknown)}; there are {', '.join(COMPONENTS.values())}"
        )
    found = scan(folder)
    names = lora.plain_names({name: name for name in found.tensors})
    names = {key: name for key, name in names.items() if not components or component(key) in components}
    tensors = {key: found.tensors[name] for key, name in names.items()}
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    config = model_config(official, shapes)
    plan = make_plan(config, shapes)
    wrong = misfits(plan, tensors)
    if found.wrong:  # what a broken file holds is not missing
        lost = {lora.plain_name(name) for name in found.lost}
        wrong = [misfit for misfit in wrong if misfit.name not in lost]
    if wrong := [*found.wrong, *wrong]:
        lines = "\n  ".join(sorted(map(str, wrong)))
        advice = "download damaged files again" if found.wrong else "is it a checkpoint of this model?"
        raise ConversionError(f"{folder} cannot be converted; {advice}\n  {lines}")
    return Released(folder, config, plan, names, tensors)


def misfits(plan: Plan, tensors: Mapping[str, StoredTensor]) -> list[Misfit]:
    """All tensors that are missing, unknown, misshapen, no floats, or unlike their other copies."""
    wrong = plan.misfits({key: tensor.shape for key, tensor in tensors.items()})
    for key, tensor in tensors.items():
        if (key in plan.parts or key in plan.aliases) and tensor.dtype.kind not in "fV":
            wrong.append(Misfit("wrong dtype", key, f" is {tensor.dtype}, not a floating type"))
    broken = {misfit.name for misfit in wrong}
    for name, key in plan.aliases.items():
        if {name, key} <= tensors.keys() - broken and not _equal(tensors[name], tensors[key]):
            wrong.append(Misfit("differing", name, f" and {key} are one parameter in the model"))
    for key, buffer in plan.buffers.items():
        if key in tensors.keys() - broken and not _equal(tensors[key], buffer.value()):
            wrong.append(Misfit("differing", key, " is not the index that follows from the sizes"))
    return wrong


def _equal(one: StoredTensor, other: StoredTensor | np.ndarray) -> bool:
    try:
        return np.array_equal(np.asarray(one), np.asarray(other))
    except ConversionError:  # a file that ends inside a tensor is in the list already
        return True


def reopen(folder: str | pathlib.Path) -> Released:
    """Config and plan of a folder that `streaming.write_orbax` wrote.

    Raises:
      ConversionError: the folder lacks what conversion puts beside the weights, or is in a bucket.
    """
    folder = on_disk(folder)
    try:
        stored = {name: tuple(shape) for name, shape in json.loads((folder / NAMES).read_text()).items()}
    except OSError as error:
        raise ConversionError(f"{error}; give a folder that launch.convert wrote") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ConversionError(f"{folder / NAMES} is damaged ({error}); convert again") from error
    names = lora.plain_names({name: name for name in stored})
    shapes = {key: stored[name] for key, name in names.items()}
    config = model_config(read_config(folder), shapes)
    return Released(folder, config, make_plan(config, shapes), names, {})


def without_adapters(released: Released) -> Released:
    """The same checkpoint as if its adapters had been merged; its tensors stay as they are.

    Raises:
      ConversionError: it has no adapters.
    """
    if released.config.llm.lora is None:
        raise ConversionError(f"{released.folder} has no adapters to merge")
    config = dataclasses.replace(released.config, llm=dataclasses.replace(released.config.llm, lora=None))
    names = {key: key for key in released.names if ".lora_" not in key}
    paths = {path: shape for path, shape in released.plan.leaves.items() if "/lora/" not in path}
    table = visionllmv2.table(config, visionllmv2.names_of(names))
    return dataclasses.replace(released, config=config, plan=Plan.make(table, paths), names=names)


def component(key: str) -> str | None:
    """The part of the model that an official name belongs to, None for an unknown one."""
    return next((part for prefix, part in COMPONENTS.items() if key.startswith(prefix)), None)


def make_plan(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Which official tensor fills which leaf of the parts that the names speak of."""
    table = visionllmv2.table(config, visionllmv2.names_of(shapes))
    parts = tuple(f"{part}/" for part in {component(key) for key in shapes} if part)
    leaves = model_leaves(config)
    return Plan.make(table, {path: shape for path, shape in leaves.items() if path.startswith(parts)})


def model_leaves(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path."""
    leaves, _ = flatten_paths(jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0))))
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}
