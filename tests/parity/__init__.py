# SPDX-License-Identifier: Apache-2.0
"""Golden comparisons: every part yields (name, what we compute, what the official code computed)."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

Case = tuple[str, np.ndarray, np.ndarray]

# The golden files' own statement: float32 with highest matmul precision, relative to max(1, max|x|).
ACTIVATION_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = 1e-4


def _part(module: str) -> Callable[[pathlib.Path], Iterator[Case]]:
    def cases(goldens: pathlib.Path) -> Iterator[Case]:
        yield from importlib.import_module(f"tests.parity.{module}").cases(goldens)

    return cases


# Component -> part -> cases. Parts are imported when they run, so that one missing extra hides no other.
COMPONENTS: dict[str, dict[str, Callable[[pathlib.Path], Iterator[Case]]]] = {
    "core": {
        name: _part(name)
        for name in (
            "clip",
            "internvit",
            "connectors",
            "regions",
            "internlm2",
            "lora",
            "full",
            "generation",
            "images",
            "text",
            "metrics",
        )
    },
    "diffusion": {
        name: _part(f"diffusion_{name}")
        for name in ("captions", "unet", "parts", "training", "samplers", "sampling")
    },
    "grounding_dino": {
        name: _part(f"grounding_dino_{name}")
        for name in (
            "units",
            "backbone",
            "deformable",
            "layers",
            "inference",
            "matcher",
            "criterion",
            "decoding",
            "training",
            "postproc",
        )
    },
    "unipose": {
        name: _part(f"unipose_{name}")
        for name in (
            "units",
            "backbone",
            "keypoints",
            "links",
            "encoder",
            "layers",
            "inference",
            "criterion",
            "training",
            "drops",
            "evaluation",
        )
    },
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor's error: the largest difference, allowed up to `tolerance * scale`."""

    name: str
    error: float
    scale: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """NaN fails."""
        return self.error <= self.tolerance * self.scale

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        return f"{verdict} {self.name:<72} max|d| {self.error:.2e}  max|x| {self.scale:.3g}"


def compare(name: str, got: np.ndarray, want: np.ndarray) -> Comparison:
    """Whole numbers have to be equal, gradients agree to 1e-4 of their own size, the rest to 3e-5."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return Comparison(f"{name} {got.shape} != {want.shape}", float("nan"), 0.0, 0.0)
    error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0)
    largest = np.abs(want.astype(np.float64)).max(initial=0.0)
    if want.dtype.kind in "iub":
        return Comparison(name, float(error), float(largest), 0.0)
    # A gradient's own size counts, which is far below 1 here; the floor is float32 noise of the loss.
    if "grad" in name:
        return Comparison(name, float(error), float(max(largest, 1e-3)), GRADIENT_TOLERANCE)
    return Comparison(name, float(error), float(max(largest, 1.0)), ACTIVATION_TOLERANCE)


def differing(cases: Callable[[pathlib.Path], Iterator[Case]], goldens: pathlib.Path) -> list[str]:
    """The lines of the cases of a part that do not agree.

    Raises:
      ValueError: the part compares nothing.
    """
    with jax.default_matmul_precision("highest"):
        found = [compare(*case) for case in cases(goldens)]
    if not found:
        raise ValueError(f"nothing of {goldens} was compared")
    return [str(result) for result in found if not result.ok]
