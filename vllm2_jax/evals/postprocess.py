# SPDX-License-Identifier: Apache-2.0
"""From a decoder's frame to the original picture: boxes, points, masks and maps of classes.

A decoder sees the picture, resized, in the upper left of a padded square, and returns masks at a quarter of
that. The official code enlarges them four times, cuts the padding off and resizes what is left to the
original size (`eval_det.py` 59-104, `eval_semseg.py`). Both resizes are linear, so they are one product with
a matrix on either side here.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

Size = tuple[int, int]  # height, width


def boxes_in_pixels(boxes: Float[np.ndarray, "n 4"], size: Size) -> Float[np.ndarray, "n 4"]:
    """Boxes (cx, cy, w, h in parts of the picture) as corners in pixels of a picture of this size."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    height, width = size
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return corners * np.array([width, height, width, height], boxes.dtype)


def instance_masks(
    logits: Float[np.ndarray, "n h w"], inside: Size, size: Size, *, stride: int = 4
) -> Bool[np.ndarray, "n H W"]:
    """Masks of objects in the original picture.

    Args:
      logits: of masks over the decoder's whole frame.
      inside: size of the resized picture in the frame.
      size: of the original picture.
      stride: pixels of the frame in one of the masks.
    """
    rows, columns = _resize(logits.shape[1:], inside, size, stride)
    return np.stack([rows @ mask @ columns.T > 0 for mask in logits]) if len(logits) else _none(size)


def class_map(
    maps: Float[np.ndarray, "K h w"], inside: Size, size: Size, *, stride: int = 4
) -> Int[np.ndarray, "H W"]:
    """The best class for every pixel of the original picture.

    Args:
      maps: for each class, the sum over queries of its probability times the query's mask (both after the
        sigmoid) over the decoder's whole frame.
      inside, size, stride: as in `instance_masks`.
    """
    rows, columns = _resize(maps.shape[1:], inside, size, stride)
    best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
    for label, one in enumerate(maps):  # one class at a time: 150 maps of a large picture are gigabytes
        found = rows @ one @ columns.T
        better = found > best
        best[better], labels[better] = found[better], label
    return labels


def _resize(frame: tuple[int, ...], inside: Size, size: Size, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices for rows and columns: enlarge, cut, resize."""
    rows, columns = (
        bilinear(cut, out) @ bilinear(cells, cells * stride)[:cut]
        for cells, cut, out in zip(frame, inside, size, strict=True)
    )
    return rows.astype(np.float32), columns.astype(np.float32)


def bilinear(before: int, after: int) -> Float[np.ndarray, "{after} {before}"]:
    """The matrix that resizes one axis: half-pixel centres, clamped at the ends, no smoothing."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, None)
    low = np.minimum(np.floor(at).astype(int), before - 1)
    high, part = np.minimum(low + 1, before - 1), at - low
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after), low), 1 - part)
    np.add.at(matrix, (np.arange(after), high), part)
    return matrix


def _none(size: Size) -> Bool[np.ndarray, "0 H W"]:
    return np.zeros((0, *size), bool)
