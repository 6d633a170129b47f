# SPDX-License-Identifier: Apache-2.0
"""Targets and recorded random numbers of the grounding goldens, in our form.

Recorded lists run over pairs that exist; our arrays have places for more, which get numbers that must not
matter.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from tests.parity import goldens
from vllm2_jax.decoders.denoising import Draws, Layout
from vllm2_jax.decoders.grounding_dino.criterion import MaskPoints
from vllm2_jax.decoders.grounding_dino.targets import Truth, read_truth
from vllm2_jax.ops.masks import Points

Arrays = dict[str, np.ndarray]


def truth(inputs: Arrays, rows: list[int], *, spare: int = 1, masks: bool = True, most: int = 99) -> Truth:
    """Objects of some pictures, at most `most` each, with `spare` places too many; masks at full size."""
    counts = [min(most, len(inputs[f"target{i}/class_labels"])) for i in rows]
    side = inputs["pixel_mask"].shape[1:]
    shape = (len(rows), max(counts) + spare)
    found = {
        "boxes": np.full((*shape, 4), 0.5, np.float32),
        "labels": np.zeros(shape, np.int32),
        "valid": np.arange(shape[1]) < np.array(counts)[:, None],
        "masks": np.ones((*shape, *side), np.uint8),
        "mask_valid": np.full(shape, masks),
    }
    for b, (i, count) in enumerate(zip(rows, counts, strict=True)):
        mine = {name: inputs[f"target{i}/{name}"][:count] for name in ("class_labels", "boxes", "masks")}
        found["labels"][b, :count], found["boxes"][b, :count] = mine["class_labels"], mine["boxes"]
        h, w = mine["masks"].shape[1:]
        found["masks"][b, :count] = 0
        found["masks"][b, :count, :h, :w] = mine["masks"]
    return read_truth(found)


def noise(recorded: tuple[np.ndarray, ...], layout: Layout, label_noise: float) -> Draws:
    """Denoising draws: the official list runs over halves of groups, in each over the objects of all rows."""
    flip, label, sign, size = recorded
    real, half = np.asarray(layout.real), np.asarray(2 * layout.group + ~layout.positive)
    out = {
        "flip": np.full(real.shape, 0.9, np.float32),
        "label": np.zeros(real.shape, np.int32),
        "sign": np.ones((*real.shape, 4), np.float32),
        "size": np.full((*real.shape, 4), 0.5, np.float32),
    }
    replaced = iter(label)
    entry = 0
    for part in range(half.max() + 1):
        for b, slot in np.argwhere(real & (half == part)):
            out["flip"][b, slot], out["size"][b, slot] = flip[entry], size[entry]
            out["sign"][b, slot] = 2 * sign[entry] - 1
            if flip[entry] < label_noise / 2:
                out["label"][b, slot] = next(replaced)
            entry += 1
    assert entry == len(flip)
    return Draws(**{name: jnp.asarray(value) for name, value in out.items()})


def matched_points(
    recorded: list[tuple[np.ndarray, np.ndarray]], query: np.ndarray, valid: np.ndarray
) -> Points:
    """Points of matched pairs, [S, B, N, P, 2]: the official list runs over rows, in each by ascending query.

    Args:
      recorded: candidates and random points of every set.
      query: of every set, row and object.
    """
    sets, rows, objects = query.shape
    out = [np.full((sets, rows, objects, *x.shape[1:]), 0.5, np.float32) for x in recorded[0]]
    for s in range(sets):
        order = [(b, n) for b in range(rows) for n in np.argsort(query[s, b]) if valid[b, n]]
        for entry, (b, n) in enumerate(order):
            for to, given in zip(out, recorded[s], strict=True):
                to[s, b, n] = given[entry]
    return Points(*map(jnp.asarray, out))


def denoising_points(recorded: list[tuple[np.ndarray, np.ndarray]], layout: Layout) -> Points:
    """Points of denoising pairs, [S, B, D / 2, P, 2]: rows, in each groups, in each objects."""
    matched = np.asarray(layout.matched)
    shape = (len(recorded), len(matched), matched.shape[1] // 2)
    out = [np.full((*shape, *x.shape[1:]), 0.5, np.float32) for x in recorded[0]]
    starts = np.cumsum([0, *matched.sum(1)])
    for s, given in enumerate(recorded):
        for b, count in enumerate(matched.sum(1)):
            for to, x in zip(out, given, strict=True):
                to[s, b, :count] = x[starts[b] : starts[b] + count]
    return Points(*map(jnp.asarray, out))


def mask_points(
    data: Arrays, names: list[str], query: np.ndarray, valid: np.ndarray, layout: Layout
) -> MaskPoints:
    """All points of `train.npz`; `names` are the sets in our order, those of denoising after the others."""
    given = {
        name: tuple(data[f"rand/points/{name}/{kind}"] for kind in ("oversample", "random")) for name in names
    }
    return MaskPoints(
        matched_points([given[name] for name in names if not name.startswith("dn_")], query, valid),
        denoising_points([given[name] for name in names if name.startswith("dn_")], layout),
    )


def set_names(layers: int) -> list[str]:
    """Official names of all sets of predictions, in our order."""
    of_layers = [f"aux{i}" for i in range(layers - 1)] + ["final"]
    return ["enc", *of_layers, *(f"dn_{name}" for name in of_layers)]


def load(folder: pathlib.Path) -> Arrays:
    """`inputs.npz`."""
    return goldens.arrays(folder, "inputs")
