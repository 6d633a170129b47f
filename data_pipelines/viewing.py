# SPDX-License-Identifier: Apache-2.0
"""What vision tower and decoder get of one picture with objects; the part that readers of such data share.

In training the decoder sees a random view (`augment`), the tower the whole picture, mirrored where the view
is. The official code leaves the tower's picture as it is while it mirrors the decoder's and swaps "left" and
"right" in the text. In tests, and where `augment` is off, both see the whole picture.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines import augment as views
from data_pipelines.augment import LONGEST, Annotated, fit
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.masks import mask_boxes, run_lengths
from vllm2_jax.tokens import QueryCounts

Masks = Bool[np.ndarray, "n h w"]


@dataclasses.dataclass(frozen=True)
class Viewing:
    """How a reader looks at its pictures.

    Attributes:
      tiling: of the vision tower.
      size: longest side of the decoder's picture in pixels.
      counts: queries of a link; those of the model.
      seed: of everything that is drawn, together with the index of the record.
      test: nothing is drawn: the whole picture, the first wording.
      augment: whether views are random; without, training sees what tests see.
    """

    tiling: Tiling
    size: int
    counts: QueryCounts
    seed: int
    test: bool
    augment: bool = True

    def rng(self, index: int) -> np.random.Generator | None:
        """Draws for record `index`; None in tests, where `templates.pick` takes the first wording."""
        return None if self.test else generator(self.seed, index)

    def view(
        self,
        whole: Annotated,
        rng: np.random.Generator | None,
        *,
        keep_one: bool = True,
        flips: float = 0.5,
        swap: Sequence[int] | None = None,
    ) -> Annotated:
        """The decoder's view: random, or the whole picture without `rng` or `augment`.

        Args:
          whole: the picture and its objects.
          rng: of the record.
          keep_one: no view without any of the objects. (The official code allows those.)
          flips: chance of a mirrored one.
          swap: which keypoint takes whose place there.
        """
        if rng is None or not self.augment:
            return fit(whole, self.size)
        return views.augment(whole, rng, size=self.size, flips=flips, swap=swap, keep_one=keep_one)

    def tiles(self, image: UInt8[np.ndarray, "h w 3"], view: Annotated) -> UInt8[np.ndarray, "T S S 3"]:
        """The tower's tiles of the whole picture, mirrored where the decoder's view is."""
        return self.tiling(image[:, ::-1].copy() if view.flipped else image)


def make_viewing(
    *,
    tile_size: int,
    image_mode: Mode,
    max_tiles: int,
    decoder_size: int = LONGEST,
    counts: QueryCounts,
    seed: int,
    test: bool,
    augment: bool = True,
    regions: bool = False,
) -> Viewing:
    """From the options that loaders of pictures with objects have in common.

    Args:
      tile_size: side of a tile in pixels.
      image_mode, max_tiles: see `Tiling`.
      decoder_size: longest side of the decoder's picture in pixels; all sizes of the recipe go with it.
      counts, seed, test: see `Viewing`.
      augment: False shows training the whole picture, never mirrored, to learn a few by heart; what a
        question asks for and its wording are drawn nevertheless.
      regions: whether there are regions, which fit "anyres" and "stretch" only.
    """
    tiling = Tiling(image_mode, tile_size, max_tiles)
    return Viewing(tiling.for_regions if regions else tiling, decoder_size, counts, seed, test, augment)


def read_picture(path: pathlib.Path, *, record: str, field: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as upright RGB.

    Raises:
      DataError: it is missing or cannot be decoded; names it, the record and the field that gave its name.
    """
    try:
        return load_image(path)
    except DataError as error:
        raise error.at(record=record, field=field) from error


def annotate(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    masks: Masks | None = None,
    boxes: Float[np.ndarray, "n 4"] | None = None,
) -> Annotated:
    """A picture and its objects as they were read.

    Args:
      image: the whole picture.
      masks: of the objects; None if there are only boxes.
      boxes: left, top, right, bottom in pixels, which are cut at the border; None takes those around the
        masks.
    """
    if boxes is None:
        if masks is None:
            raise ValueError("objects need masks or boxes")
        boxes = mask_boxes(masks)
    height, width = image.shape[:2]
    boxes = boxes.clip(0, [width, height, width, height])
    area = None if masks is None else masks.sum((1, 2)).astype(np.float32)
    return Annotated(image, boxes.astype(np.float32), masks, None, area, np.arange(len(boxes)))


def truth(
    size: tuple[int, int],
    labels: Sequence[str],
    *,
    boxes: Float[np.ndarray, "n 4"] | None = None,
    masks: Masks | None = None,
    segmentations: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """`Example.meta["truth"]` of a picture with objects; its form is described in `launch.truth`.

    Args:
      size: height, width of the original picture.
      labels: names of the objects' classes.
      boxes: left, top, right, bottom in its pixels; None takes those around the masks.
      masks: written as run lengths, where there are no `segmentations`.
      segmentations: as in COCO; evaluation draws them as pycocotools does.
    """
    if boxes is None:
        if masks is None:
            raise ValueError("objects need masks or boxes")
        boxes = mask_boxes(masks)
    if segmentations is None and masks is not None:
        segmentations = [run_lengths(mask) for mask in masks]
    return {
        "size": size,
        "boxes": boxes.astype(np.float64),
        "labels": list(labels),
        "segmentations": segmentations,
    }
