# SPDX-License-Identifier: Apache-2.0
"""A model to begin training with, put together from public checkpoints and from runs of earlier stages."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vllm2_jax.convert.homes import open_home
from vllm2_jax.convert.rules import ConversionError, Plan
from vllm2_jax.model import ModelConfig
from vllm2_jax.train.exporting import Source
from vllm2_jax.train.paths import PathLike, in_bucket
from vllm2_jax.train.released import model_leaves, on_disk
from vllm2_jax.train.streaming import LazyLeaf, lazy_leaves

OURS = "ours"  # the kind of a folder that conversion, assembly or a run wrote
TRUNK = ("vision", "bridge", "regions", "queries", "llm")


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Leaves with what makes them.

    Attributes:
      leaves: by path.
      fresh: paths that no part has.
    """

    leaves: Mapping[str, LazyLeaf]
    fresh: tuple[str, ...]

    def fresh_pattern(self) -> str:
        """A regex for `config.init.fresh` that finds the fresh leaves and no others; "" for none."""
        prefixes = set()
        for path in self.fresh:
            names = path.split("/")
            heads = ("/".join(names[: i + 1]) for i in range(len(names)))
            prefixes.add(next(head for head in heads if not self._holds(head)))
        return f"^({'|'.join(sorted(prefixes))})(/|$)" if prefixes else ""

    def _holds(self, head: str) -> bool:
        return any(path == head or path.startswith(f"{head}/") for path in self.leaves)


def assemble(
    config: ModelConfig, parts: Mapping[str, str], root: PathLike = "", dtype: str | None = None
) -> Assembled:
    """Opens all parts and compares them with the model; nothing but headers is read.

    Args:
      config: of the model.
      parts: part of the model -> "kind:folder". A part is a path of the model (`vision`, `llm`,
        `decoders/unipose`, `decoders/unipose/backbone`) or `trunk`, all but the decoders; a kind is a key of
        `homes.HOMES`, or `ours`.
      root: folders are relative to it, if they are not in a bucket.
      dtype: of all leaves; None keeps what is stored.

    Raises:
      ConversionError: lists everything that does not fit, in all parts.
    """
    shapes = model_leaves(config)
    leaves: dict[str, LazyLeaf] = {}
    wrong: list[str] = []
    for part, value in parts.items():
        kind, _, folder = value.partition(":")
        source = folder if in_bucket(folder) else os.path.join(root, folder)
        try:
            if kind == OURS:
                found = _from_ours(part, source, shapes, dtype)
            else:
                found = _from_home(config, part, kind, source, shapes, dtype)
        except (ConversionError, FileNotFoundError) as error:
            wrong.append(f"{part} = {value}: {error}")
            continue
        twice = sorted(found.keys() & leaves.keys())
        if twice:
            wrong.append(f"{part} = {value}: another part has filled {twice[0]} and {len(twice) - 1} more")
        leaves |= found
    if wrong:
        raise ConversionError("\n".join(wrong))
    return Assembled(leaves, tuple(sorted(shapes.keys() - leaves.keys())))


def part_config(config: ModelConfig, part: str) -> Any:
    """The config of a part.

    Raises:
      ConversionError: the model has no such part.
    """
    names = part.split("/")
    try:
        if names[0] == "decoders":
            found = config.decoders[names[1]]
            return found.backbone if names[2:] == ["backbone"] else found
        return {"vision": config.vision, "bridge": config.bridge, "llm": config.llm}[part]
    except (KeyError, IndexError, AttributeError):
        known = ("vision", "bridge", "llm", *(f"decoders/{name}" for name in config.decoders))
        raise ConversionError(f"no part {part!r} of the model; there are {', '.join(known)}") from None


def _from_home(
    config: ModelConfig,
    part: str,
    kind: str,
    source: PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str | None,
) -> dict[str, LazyLeaf]:
    home = open_home(kind, on_disk(source), part_config(config, part))
    mine = {
        path.removeprefix(f"{part}/"): shape for path, shape in shapes.items() if path.startswith(f"{part}/")
    }
    plan = Plan.make(home.table, {path: s for path, s in mine.items() if not re.search(home.new, path)})
    wrong = [str(misfit) for misfit in plan.misfits({key: t.shape for key, t in home.tensors.items()})]
    if wrong := sorted([*wrong, *home.differing]):
        lines = "\n  ".join(wrong)
        raise ConversionError(f"it does not fit this part of the model:\n  {lines}")
    return {f"{part}/{path}": leaf for path, leaf in lazy_leaves(plan, home.tensors, dtype).items()}


def _from_ours(
    part: str, folder: PathLike, shapes: Mapping[str, tuple[int, ...]], dtype: str | None
) -> dict[str, LazyLeaf]:
    source = Source.open(folder)
    prefixes = tuple(f"{name}/" for name in (TRUNK if part == "trunk" else (part,)))
    paths = [path for path in shapes if path.startswith(prefixes) and path in source.shapes]
    wrong = [
        f"{path} is {source.shapes[path]}, the model has {shapes[path]}"
        for path in paths
        if source.shapes[path] != shapes[path]
    ]
    if not paths:
        wrong = [f"no parameters of {part}"]
    if wrong:
        raise ConversionError("it does not fit this part of the model:\n  " + "\n  ".join(wrong))

    def reader(path: str, kind: np.dtype[Any]) -> Callable[[slice], np.ndarray]:
        return lambda rows: source.read(path, rows).astype(kind, copy=False)

    found = {}
    for path in paths:
        kind = np.dtype(dtype or source.dtypes[path])
        found[path] = LazyLeaf(shapes[path], kind, reader(path, kind), stacked=path.startswith("llm/layers/"))
    return found
