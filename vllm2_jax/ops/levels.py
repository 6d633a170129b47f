# SPDX-License-Identifier: Apache-2.0
"""Feature maps of several strides laid one after the other: their masks, cell centres and first boxes.

Level 0 is the finest. Cells are laid row by row, level after level, S in all. Pictures lie at the top left of
their padded square, so all coordinates are shares of the *valid* part unless said otherwise.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Shapes = tuple[tuple[int, int], ...]  # (height, width) of every level


def shrink(mask: Bool[Array, "B H W"], shape: tuple[int, int]) -> Bool[Array, "B h w"]:
    """A mask at the size of a feature map: nearest neighbour, source = floor(cell * in / out) in float32."""
    rows, columns = (
        np.minimum(np.floor(np.arange(out, dtype=np.float32) * np.float32(size / out)).astype(int), size - 1)
        for size, out in zip(mask.shape[1:], shape, strict=True)
    )
    return mask[:, rows][:, :, columns]


def flatten(maps: list[Array]) -> Array:
    """`[B, h, w, ...]` of every level to `[B, S, ...]`."""
    return jnp.concatenate([x.reshape(len(x), -1, *x.shape[3:]) for x in maps], axis=1)


def valid_ratios(masks: list[Bool[Array, "B _h _w"]]) -> Float[Array, "B L 2"]:
    """Share of every level's width and height (in this order) that the picture fills.

    Counted in the first row and the first column, as in the official code.
    """
    ratios = [jnp.stack([mask[:, 0].mean(1), mask[:, :, 0].mean(1)], axis=-1) for mask in masks]
    return jnp.stack(ratios, axis=1)


def references(shapes: Shapes, ratios: Float[Array, "B L 2"]) -> Float[Array, "B S L 2"]:
    """Where every cell looks on every level: its own centre as (x, y) in shares of its *padded* map."""
    own = [
        _centres(shape).reshape(-1, 2) / (ratios[:, level, None] * np.array(shape[::-1], np.float32))
        for level, shape in enumerate(shapes)
    ]
    return jnp.concatenate(own, axis=1)[:, :, None] * ratios[:, None]


def proposals(masks: list[Bool[Array, "B _h _w"]]) -> tuple[Float[Array, "B S 4"], Bool[Array, "B S"]]:
    """A box at every cell as logits of (cx, cy, w, h), and which of them are usable.

    Boxes are 0.05 wide and high on level 0 and twice as large on each further one. Cells in the padding, and
    those closer than 0.01 to the border or to a size of 1, get +inf logits: the box (1, 1, 1, 1).
    """
    boxes, inside = [], []
    for level, mask in enumerate(masks):
        counts = jnp.stack([mask[:, 0].sum(1), mask[:, :, 0].sum(1)], axis=-1)[:, None, None]
        centres = _centres(mask.shape[1:]) / jnp.maximum(counts, 1)
        boxes.append(jnp.concatenate([centres, jnp.full_like(centres, 0.05 * 2**level)], axis=-1))
        inside.append(mask)
    box, usable = flatten(boxes), flatten(inside)
    usable &= ((box > 0.01) & (box < 0.99)).all(-1)
    box = jnp.where(usable[..., None], box, 0.5)
    return jnp.where(usable[..., None], jnp.log(box / (1 - box)), jnp.inf), usable


def _centres(shape: tuple[int, ...]) -> np.ndarray:
    """(x, y) of all cells of a level in cells, [h, w, 2]."""
    y, x = np.mgrid[: shape[0], : shape[1]] + np.float32(0.5)
    return np.stack([x, y], axis=-1).astype(np.float32)
