# SPDX-License-Identifier: Apache-2.0
"""The pytrees that every part agrees on.

A batch is `groups x rows`. Every group holds the same tasks in the same rows, so that a decoder's rows
are a static slice inside each group: routing adds no collective. All arrays lead with the group axis `G`,
the only one that is ever split over devices. `r` counts the rows of one task in a group, `R` those of all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

# What fills a column of the language model (`Inputs.source`).
TEXT, IMAGE, REGION, LINK = range(4)

IGNORE = -100  # label of a column that is not to be predicted

# (sum, weight) of a loss or metric: its value is sum / max(weight, 1) after both are summed over the whole
# batch, and 0 if the weight is: without any object in the batch, detectors learn no background either. The
# coefficient of a loss term is part of the sum.
Weighted = tuple[Float[Array, ""], Float[Array, ""]]

# Whatever has a shape and a dtype: the host fills these structures with numpy arrays, the compiler with
# descriptions of arrays.
Leaf = Any


@struct.dataclass
class Inputs:
    """What the trunk (towers, connectors, language model) reads. Axes: G groups, R rows a group, L columns.

    Attributes:
      tokens: token id of every column; query columns of links hold their `[EMB]` ids.
      source: TEXT, IMAGE, REGION or LINK.
      index: which image token (tile * tokens_a_tile + token), region (row of `masks`) or query (row of the
        table of all queries) fills the column; 0 for text. Counts inside the group.
      positions: rotary position; starts again at 0 in every packed segment.
      segments: columns attend to each other only inside one segment; 0 is padding, the first segment is 1.
      tiles: T pictures a group at the tower's resolution: uint8 RGB, normalised on the device, or floats that
        are normalised already. Unused tiles are zeros that no column points at.
      masks: N region masks a group, in the (stretched) coordinates of their tile; unused ones are zeros.
      mask_tile: the tile (row of `tiles`) each region lies on.
    """

    tokens: Int[Leaf, "G R L"]
    source: Int[Leaf, "G R L"]
    index: Int[Leaf, "G R L"]
    positions: Int[Leaf, "G R L"]
    segments: Int[Leaf, "G R L"]
    tiles: UInt8[Leaf, "G T S S 3"] | Float[Leaf, "G T S S 3"]
    masks: UInt8[Leaf, "G N S S"]
    mask_tile: Int[Leaf, "G N"]


@struct.dataclass
class TaskRows:
    """The rows of one task in every group.

    Attributes:
      inputs: what the trunk reads; its `index` and `mask_tile` count inside this task's own tiles and masks.
      labels: the token id each column should be *predicted as* (from the column before it), or IGNORE.
      link_position: column of each query of each link a row has; K links at most, Q queries a link.
        K is 0 for tasks without a decoder.
      link_valid: which of the K places hold a link.
      targets: decoder name -> that decoder's targets (leading axes G, r); empty for language-only tasks.
    """

    inputs: Inputs
    labels: Int[Leaf, "G r L"]
    link_position: Int[Leaf, "G r K Q"]
    link_valid: Bool[Leaf, "G r K"]
    targets: dict[str, Any]


Batch = Mapping[str, TaskRows]  # task name -> its rows


@struct.dataclass
class Links:
    """What a decoder reads: hidden states of the language model at the query columns, after its last norm.

    Attributes:
      states: K links, Q queries a link, D the language model's width; a decoder gets all its rows flattened
        into one leading axis B.
      valid: which links exist; the states of the others are those of some other column and mean nothing.
    """

    states: Float[Leaf, "*B K Q D"]
    valid: Bool[Leaf, "*B K"]


def merge(tasks: Sequence[Inputs], tokens_per_tile: int) -> Inputs:
    """Lays the rows of several tasks side by side inside each group, in the given order.

    Args:
      tasks: one entry a task; all have the same G, L and tile size.
      tokens_per_tile: columns that one tile fills, to shift the image columns of later tasks.
    """
    tiles = masks = 0
    shifted = []
    for task in tasks:
        offsets = jnp.array([0, tiles * tokens_per_tile, masks, 0], task.index.dtype)
        shifted.append(
            dataclasses.replace(
                task,
                index=task.index + offsets[task.source],
                mask_tile=task.mask_tile + tiles,
            )
        )
        tiles += task.tiles.shape[1]
        masks += task.masks.shape[1]

    def join(name: str) -> Array:
        return jnp.concatenate([getattr(task, name) for task in shifted], axis=1)

    return Inputs(**{name: join(name) for name in Inputs.__dataclass_fields__})


def split_rows(x: Float[Array, "G R *D"], rows: Sequence[int]) -> list[Float[Array, "G _ *D"]]:
    """Cuts an array of all rows back into each task's; `rows` are the row counts, in order of `merge`."""
    if sum(rows) != x.shape[1]:
        raise ValueError(f"row counts {list(rows)} do not add up to the {x.shape[1]} rows of {x.shape}")
    starts = [sum(rows[:i]) for i in range(len(rows))]
    return [x[:, start : start + n] for start, n in zip(starts, rows, strict=True)]


def flatten_groups(x: Array) -> Array:
    """`[G, R, ...] -> [G * R, ...]`."""
    return x.reshape(-1, *x.shape[2:])


def add(a: Weighted, b: Weighted) -> Weighted:
    """Sum of two weighted values."""
    return a[0] + b[0], a[1] + b[1]


def mean(value: Weighted) -> Float[Array, ""]:
    """sum / max(weight, 1): 0 where nothing was weighed."""
    return jnp.where(value[1] > 0, value[0] / jnp.maximum(value[1], 1), 0)
