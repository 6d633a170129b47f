# SPDX-License-Identifier: Apache-2.0
"""Where the parts of the recipe come from: public checkpoints of single models, each with its own entry.

A new home is a function that opens a folder or file for one kind of part, and a line in `HOMES`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vllm2_jax.convert import (
    bridge,
    clip,
    diffusers,
    diffusion,
    grounding_dino,
    internlm2,
    internvit,
    llama,
    official,
    swin,
    unipose,
)
from vllm2_jax.convert.checkpoint import StoredTensor, open_checkpoint, open_file, read_config
from vllm2_jax.convert.rules import ConversionError, Ignore, Row, Rule, Table, prefixed
from vllm2_jax.convert.transforms import Transform, chain
from vllm2_jax.llm.llama import LlamaConfig

Tensors = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a home has for a part.

    Attributes:
      tensors: name -> tensor.
      table: rows for all of these names; paths are inside the part.
      new: regex of the part's leaves that the home does not have.
      differing: choices of the home that shapes do not tell and that are not the part's.
    """

    tensors: Tensors
    table: Table
    new: str = r"$^"
    differing: tuple[str, ...] = ()


def open_home(kind: str, source: str | pathlib.Path, config: Any) -> Opened:
    """Opens what a part is to be filled from; nothing but headers is read.

    Args:
      kind: a key of `HOMES`.
      source: folder (or file of torch) of that kind.
      config: of the part.

    Raises:
      ConversionError: an unknown kind, or damaged files.
    """
    if kind not in HOMES:
        raise ConversionError(f"no home {kind!r} of weights; there are {', '.join(HOMES)}")
    source = pathlib.Path(source)
    if not source.exists():
        raise ConversionError(f"{source} does not exist; download it, or correct the path")
    return HOMES[kind](source, config)


def _clip(source: pathlib.Path, config: Any) -> Opened:
    """CLIP (openai/clip-vit-large-patch14-336); its text encoder is left out."""
    others = Ignore(
        r"(text_model|visual_projection|text_projection|logit_scale)(\..*)?", "the text side of CLIP"
    )
    theirs = official.vision_config(read_config(source))
    differing = compare(theirs, config, ("heads", "eps", "image_size"))
    return Opened(open_checkpoint(source), [*clip.table(config), others], differing=differing)


def _internvit(source: pathlib.Path, config: Any) -> Opened:
    """InternViT (OpenGVLab/InternViT-6B-448px-V1-2 and its like); positions are resized if need be."""
    theirs = official.vision_config(read_config(source))
    table = internvit.table(config, stored_image_size=theirs.image_size)
    return Opened(open_checkpoint(source), table, differing=compare(theirs, config, ("heads", "eps")))


def _llama(source: pathlib.Path, config: LlamaConfig) -> Opened:
    """Llama and Vicuna (lmsys/vicuna-7b-v1.5)."""
    return _llm(source, config, llama.table)


def _internlm2(source: pathlib.Path, config: LlamaConfig) -> Opened:
    """InternLM2 (internlm/internlm2-chat-20b)."""
    return _llm(source, config, internlm2.table)


def _llm(source: pathlib.Path, config: LlamaConfig, table: Callable[[LlamaConfig], Table]) -> Opened:
    tensors = open_checkpoint(source)
    theirs = official.llm_config(read_config(source), {key: t.shape for key, t in tensors.items()})
    plain = dataclasses.replace(config, lora=None)
    rows: list[Row] = []
    for row in table(plain):
        if isinstance(row, Rule) and row.path in ("embed", "head"):
            row = dataclasses.replace(row, transform=chain(grow(config.vocab), row.transform))
        rows.append(row)
    names = ("heads", "kv_heads", "rms_eps", "rope", "qkv_bias", "out_bias")
    return Opened(tensors, rows, new="/lora/", differing=compare(theirs, config, names))


def grow(vocab: int) -> Transform:
    """Rows of an embedding for tokens that were added: the mean of the old ones, as in the official code."""

    def forward(x: np.ndarray) -> np.ndarray:
        if len(x) >= vocab:
            return x
        mean = x.mean(axis=0, dtype=np.float32).astype(x.dtype)
        return np.concatenate([x, np.broadcast_to(mean, (vocab - len(x), x.shape[1]))])

    def inverse(x: np.ndarray) -> np.ndarray:
        raise ValueError("which rows were added is not known; export with the table of the whole model")

    return Transform(forward, inverse)


def _llava(source: pathlib.Path, config: Any) -> Opened:
    """LLaVA-1.5's connector: mm_projector.bin, or a whole model in either of its layouts."""
    tensors = open_checkpoint(source) if source.is_dir() else _file(source)
    theirs, transformers = r"model\.mm_projector\.", "multi_modal_projector."
    if any(key.startswith(transformers) for key in tensors):
        rows: list[Row] = []
        for row in bridge.table(config):
            assert isinstance(row, Rule)
            number, part = row.pattern.split(r"\.")
            name = rf"multi_modal_projector\.linear_{int(number) // 2 + 1}\.{part}"
            rows.append(dataclasses.replace(row, pattern=name))
        return Opened(tensors, [*rows, Ignore(r"(?!multi_modal_projector\.).*", "the rest of LLaVA")])
    rows = prefixed(bridge.table(config), "model.mm_projector.", "")
    return Opened(tensors, [*rows, Ignore(rf"(?!{theirs}).*", "the rest of LLaVA")])


def _grounding_dino(source: pathlib.Path, config: Any) -> Opened:
    """Grounding DINO of transformers (IDEA-Research/grounding-dino-tiny, -base), both attention namings."""
    tensors = open_checkpoint(source)
    packed = any(key.endswith("in_proj_weight") for key in tensors)
    table = grounding_dino.table(config, public=True, packed=packed)
    return Opened(tensors, table, new=_beginning(grounding_dino.NEW))


def _unipose(source: pathlib.Path, config: Any) -> Opened:
    """The public UniPose (unipose_swint.pth)."""
    tensors = {key.removeprefix("module."): tensor for key, tensor in _file(source).items()}
    return Opened(tensors, unipose.table(config, public=True), new=_beginning(unipose.NEW))


def _swin(source: pathlib.Path, config: Any) -> Opened:
    """A Swin classifier, in the original files (.pth) or of transformers; the norms of the maps are new."""
    tensors = open_checkpoint(source) if source.is_dir() else _file(source)
    new = r"^stages/\d+/norm/"
    if any(key.startswith("swin.") for key in tensors):
        rest = Ignore(r"(swin\.layernorm|classifier)\..*", "the classifier")
        return Opened(tensors, [*prefixed(swin.transformers_table(config), "swin.", ""), rest], new=new)
    rest = Ignore(r"(norm|head)\..*|.*\.attn_mask", "the classifier, and masks that follow from sizes")
    return Opened(tensors, [*swin.original_table(config), rest], new=new)


def _diffusers(source: pathlib.Path, config: Any) -> Opened:
    """A pipeline of diffusers (Stable Diffusion 1.5, InstructPix2Pix), either naming in the VAE."""
    tensors: dict[str, StoredTensor] = {}
    for name in diffusers.FILES:
        part = open_checkpoint(source / name)
        if name == "vae":
            part = diffusers.new_attention_names(part)
        tensors |= {f"{name}.{key}": tensor for key, tensor in part.items()}
    theirs = diffusers.read_config(source)
    differing = (
        *compare(theirs.unet, config.unet, ("heads", "groups", "attends"), "unet."),
        *compare(theirs.vae, config.vae, ("groups", "scale"), "vae."),
        *compare(theirs.text, config.text, ("heads", "start", "end", "eps"), "text."),
        *compare(theirs, config, ("schedule",)),
    )
    rows = [
        *prefixed(diffusion.unet_table(config.unet), "unet.", "unet/"),
        *prefixed(diffusion.vae_table(config.vae), "vae.", "vae/"),
        *prefixed(clip.text_table(config.text.heads), "text_encoder.", "text/"),
    ]
    return Opened(tensors, rows, new=r"^mapper/", differing=differing)


# Kind -> what opens it. `README`-like names: `docs/weights.md` lists them with their public addresses.
HOMES: dict[str, Callable[[pathlib.Path, Any], Opened]] = {
    "clip": _clip,
    "internvit": _internvit,
    "llama": _llama,
    "internlm2": _internlm2,
    "llava": _llava,
    "grounding_dino": _grounding_dino,
    "unipose": _unipose,
    "swin": _swin,
    "diffusers": _diffusers,
}


def compare(theirs: Any, ours: Any, fields: tuple[str, ...], prefix: str = "") -> tuple[str, ...]:
    """A line for each of these fields that differs between two configs."""
    if type(theirs) is not type(ours):
        return (f"a {type(theirs).__name__} there, a {type(ours).__name__} here",)
    return tuple(
        f"{prefix}{name} is {getattr(theirs, name)} there, {getattr(ours, name)} here"
        for name in fields
        if getattr(theirs, name) != getattr(ours, name)
    )


def _file(path: pathlib.Path) -> dict[str, StoredTensor]:
    tensors, wrong = open_file(path)
    if wrong:
        lines = "\n  ".join(map(str, wrong))
        raise ConversionError(f"{path} is damaged; download it again:\n  {lines}")
    return tensors


def _beginning(prefixes: tuple[str, ...]) -> str:
    return "^(" + "|".join(prefixes) + ")"
