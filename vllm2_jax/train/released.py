# SPDX-License-Identifier: Apache-2.0
"""A released checkpoint, opened: its tensors, its model's config, and which tensor fills which leaf."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax

from vllm2_jax.convert import lora, visionllmv2
from vllm2_jax.convert.checkpoint import Stored, open_checkpoint, read_config
from vllm2_jax.convert.official import model_config
from vllm2_jax.convert.rules import ConversionError, Plan
from vllm2_jax.model import ModelConfig, VisionLLMv2
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs

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
      plan: which tensor fills which leaf.
      tensors: plain official name -> tensor; none when `reopen`ed.
    """

    folder: pathlib.Path
    config: ModelConfig
    plan: Plan
    tensors: Mapping[str, Stored]


def open_released(
    folder: str | pathlib.Path,
    components: Sequence[str] = (),
) -> Released:
    """Opens a folder in the official layout.

    Args:
      folder: config.json, index, shards.
      components: parts of the model to take (values of `COMPONENTS`); none takes all.

    Raises:
      ConversionError: a damaged folder, an unknown component, a config that is not understood.
    """
    folder = pathlib.Path(folder)
    official = read_config(folder)
    if unknown := sorted(set(components) - set(COMPONENTS.values())):
        raise ConversionError(
            f"no component {', '.join(unknown)}; there are {', '.join(COMPONENTS.values())}"
        )
    tensors = {
        key: tensor
        for key, tensor in lora.plain_names(open_checkpoint(folder)).items()
        if not components or component(key) in components
    }
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    config = model_config(official, shapes)
    return Released(folder, config, make_plan(config, shapes), tensors)


def reopen(folder: str | pathlib.Path) -> Released:
    """Config and plan of a folder that `streaming.write_orbax` wrote.

    Raises:
      ConversionError: the folder lacks what conversion puts beside the weights.
    """
    folder = pathlib.Path(folder)
    try:
        shapes = {key: tuple(shape) for key, shape in json.loads((folder / NAMES).read_text()).items()}
    except OSError as error:
        raise ConversionError(f"{error}; give a folder that launch.convert wrote") from None
    config = model_config(read_config(folder), shapes)
    return Released(folder, config, make_plan(config, shapes), {})


def component(key: str) -> str | None:
    """The part of the model that an official name belongs to, None for an unknown one."""
    return next((part for prefix, part in COMPONENTS.items() if key.startswith(prefix)), None)


def make_plan(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Which official tensor fills which leaf of the parts that the names speak of."""
    leaves, _ = flatten_paths(jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0))))
    table = visionllmv2.table(config, visionllmv2.names_of(shapes))
    parts = tuple(f"{part}/" for part in {component(key) for key in shapes} if part)
    return Plan.make(
        table, {path: tuple(leaf.shape) for path, leaf in leaves.items() if path.startswith(parts)}
    )
