# SPDX-License-Identifier: Apache-2.0
"""Random views of a picture with its objects: mirrored, cropped, at several sizes.

The recipe is that of the official detection data (paper appendix; DETR's): mirrored half of the time, then
with equal chance either the whole picture or a part of it, resized so that its shorter side is one of 480,
512, ... 800 pixels and its longer one 1333 at most. The official code resizes, crops and resizes again; here
the part is cut out of the original, so that pixels are interpolated once.

The picture goes to a decoder in a square (`collate_perception`). For the sizes to have an effect there it
must not be enlarged to fill it: `Annotated.targets` says so.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from data_pipelines.masks import mask_boxes

LONGEST = 1333  # pixels; all other sizes are for this one, and shrink or grow with it
SHORTEST = tuple(range(480, 801, 32))
_BEFORE_CROP = (400, 500, 600)  # shorter side of the picture that a part is cut from
_PART = (384, 600)  # least and greatest side of that part
_CROP_CHANCE = 0.5
_TRIES = 20  # parts drawn until one shows an object, where one has to

_SIDES = re.compile(
    r"(?<![a-z])(left|right)(?=(?:most|hand|handed|side|wards?|er|est|y)?(?![a-z]))", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A picture and its objects, in pixels of that picture.

    Attributes:
      image: RGB.
      boxes: left, top, right, bottom; the ends exclusive.
      masks: of each object.
      keypoints: x, y and visibility (0 not labelled, 1 hidden, 2 visible). A whole number is a pixel, not the
        edge between two, as in COCO.
      area: pixels of each object.
      kept: the index that each object had in what was read; others were cropped away.
      flipped: whether the picture is mirrored against what was read. Expressions then need
        `swap_left_right`, and the vision tower's picture has to be mirrored too.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    masks: Bool[np.ndarray, "n H W"] | None
    keypoints: Float[np.ndarray, "n P 3"] | None
    area: Float[np.ndarray, " n"] | None
    kept: Int[np.ndarray, " n"]
    flipped: bool = False

    def targets(self, labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """What a decoder learns from, in the form of `synthetic.perception`.

        Args:
          labels: which link of the answer each object belongs to.

        Returns:
          `image`, `boxes`, `labels`, and of `masks`, `area`, `keypoints` and `visibility` what there is; also
          `enlarge` (False): the picture keeps its size in the decoder's square.
        """
        height, width = self.image.shape[:2]
        size = np.array([width, height], np.float32)
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        found: dict[str, Any] = {
            "image": self.image,
            "enlarge": False,
            "boxes": np.concatenate([(low + high) / 2 / size, (high - low) / size], 1).astype(np.float32),
            "labels": np.asarray(labels, np.int64),
        }
        if self.masks is not None:
            found["masks"] = self.masks
        if self.area is not None:
            found["area"] = (self.area / (height * width)).astype(np.float32)
        if self.keypoints is not None:
            found["keypoints"] = (self.keypoints[..., :2] / size).astype(np.float32)
            found["visibility"] = self.keypoints[..., 2].astype(np.int32)
        return found


def augment(
    view: Annotated,
    rng: np.random.Generator,
    *,
    size: int = LONGEST,
    flips: float = 0.5,
    swap: Sequence[int] | None = None,
    keep_one: bool = False,
) -> Annotated:
    """A random view for training.

    Args:
      view: the picture as it was read.
      rng: decides.
      size: longest side of the result in pixels; every other size of the recipe goes with it.
      flips: chance of a mirrored picture.
      swap: see `flip`.
      keep_one: take parts that show an object only; the whole picture if none of 20 does.
    """
    if rng.random() < flips:
        view = flip(view, swap)
    if rng.random() < _CROP_CHANCE:
        for _ in range(_TRIES):
            part = crop(view, *_part(view.image.shape[:2], rng))
            if len(part.boxes) or not keep_one:
                view = part
                break
    return _resize_shortest(view, int(rng.choice(SHORTEST)), size)


def fit(view: Annotated, size: int = LONGEST) -> Annotated:
    """The view for tests: the shorter side 800 pixels, the longer one 1333 at most, or in proportion."""
    return _resize_shortest(view, SHORTEST[-1], size)


def flip(view: Annotated, swap: Sequence[int] | None = None) -> Annotated:
    """Mirrors left and right.

    Args:
      view: with P keypoints or none.
      swap: a permutation of the P keypoints: a left one takes the place of its right one. Without it,
        keypoints keep their order. Twice the same flip is the identity if the permutation is its own inverse.
    """
    width = view.image.shape[1]
    boxes = view.boxes.copy()
    boxes[:, [0, 2]] = width - view.boxes[:, [2, 0]]
    keypoints = view.keypoints
    if keypoints is not None:
        keypoints = keypoints if swap is None else keypoints[:, list(swap)]
        # Points without a label stay at 0, 0.
        x = np.where(keypoints[..., 2] > 0, width - 1 - keypoints[..., 0], keypoints[..., 0])
        keypoints = np.concatenate([x[..., None], keypoints[..., 1:]], -1)
    return dataclasses.replace(
        view,
        image=view.image[:, ::-1].copy(),
        boxes=boxes,
        masks=None if view.masks is None else view.masks[:, :, ::-1].copy(),
        keypoints=keypoints,
        flipped=not view.flipped,
    )


def crop(view: Annotated, top: int, left: int, height: int, width: int) -> Annotated:
    """A part of the picture, in whole pixels of it.

    Boxes are cut at the border. An object with a mask that loses something gets the tight box of what is
    left; one of which nothing is left is dropped. Its area shrinks by the share of the mask (or box) that is
    lost. Keypoints outside become 0, 0, 0. The official code moves these to the border and leaves them
    visible, and takes the box's area for every object's.
    """
    border = np.array([width, height, width, height], np.float32)
    moved = view.boxes - np.array([left, top, left, top], np.float32)
    boxes = moved.clip(0, border)
    left_over = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    share = _box_areas(boxes) / np.maximum(_box_areas(moved), 1e-6)
    masks = view.masks
    if masks is not None:
        before = masks.sum((1, 2))
        masks = masks[:, top : top + height, left : left + width]
        after = masks.sum((1, 2))
        left_over &= after > 0
        share = after / np.maximum(before, 1)
        cut = (boxes != moved).any(1) & left_over
        boxes[cut] = mask_boxes(masks[cut])
        masks = masks[left_over].copy()
    keypoints = view.keypoints
    if keypoints is not None:
        keypoints = keypoints[left_over] - np.array([left, top, 0], np.float32)
        inside = (keypoints[..., :2] >= 0).all(-1) & (keypoints[..., :2] < border[:2]).all(-1)
        keypoints = keypoints * (inside & (keypoints[..., 2] > 0))[..., None].astype(np.float32)
    return dataclasses.replace(
        view,
        image=view.image[top : top + height, left : left + width].copy(),
        boxes=boxes[left_over],
        masks=masks,
        keypoints=keypoints,
        area=None if view.area is None else (view.area * share)[left_over].astype(np.float32),
        kept=view.kept[left_over],
    )


def resize(view: Annotated, height: int, width: int) -> Annotated:
    """Another size, in pixels. Masks take the nearest pixel; one that falls between them keeps a single one.

    Pillow's bilinear filter is smoother than OpenCV's of the official code when the picture shrinks.
    """
    old_height, old_width = view.image.shape[:2]
    if (height, width) == (old_height, old_width):
        return view
    scale = np.array([width / old_width, height / old_height], np.float32)
    masks = None
    if view.masks is not None:
        masks = np.zeros((len(view.masks), height, width), bool)
        for new, old in zip(masks, view.masks, strict=True):
            picture = Image.fromarray(old.astype(np.uint8))
            new[:] = np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))
            if not new.any() and old.any():
                x0, y0, x1, y1 = mask_boxes(old[None])[0] * np.tile(scale, 2)
                new[int((y0 + y1) / 2), int((x0 + x1) / 2)] = True
    keypoints = view.keypoints
    if keypoints is not None:
        keypoints = keypoints * np.array([*scale, 1], np.float32)
    return dataclasses.replace(
        view,
        image=np.asarray(Image.fromarray(view.image).resize((width, height), Image.Resampling.BILINEAR)),
        # float32 would round some ends at the border to a little outside.
        boxes=(view.boxes * np.tile(scale, 2)).clip(0, [width, height] * 2).astype(np.float32),
        masks=masks,
        keypoints=keypoints,
        area=None if view.area is None else view.area * (scale[0] * scale[1]),
    )


def swap_left_right(text: str) -> str:
    """An expression for the mirrored picture: "left" becomes "right" and the other way round.

    Whole words and "leftmost", "right-hand" and the like; "bright" stays, of which the official code makes
    "bleft".
    """

    def other(match: re.Match) -> str:
        word = match[0]
        swapped = "right" if word.lower() == "left" else "left"
        return swapped.upper() if word.isupper() else swapped.title() if word[0].isupper() else swapped

    return _SIDES.sub(other, text)


def _resize_shortest(view: Annotated, shortest: int, size: int) -> Annotated:
    """`shortest` is for a longest side of 1333."""
    height, width = view.image.shape[:2]
    scale = min(size / max(height, width), shortest * size / LONGEST / min(height, width))
    return resize(view, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))


def _part(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random part, in pixels of the original picture."""
    scale = int(rng.choice(_BEFORE_CROP)) / min(size)
    starts, sides = [], []
    for old in size:
        low, high = (max(1, min(old, round(bound / scale))) for bound in _PART)
        side = int(rng.integers(low, high + 1))
        sides.append(side)
        starts.append(int(rng.integers(old - side + 1)))
    return starts[0], starts[1], sides[0], sides[1]


def _box_areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
