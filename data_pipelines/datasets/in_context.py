# SPDX-License-Identifier: Apache-2.0
"""Examples first, then the question: pictures with masks, and a last picture to do the same with (MMIC).

A record is `{"image": [paths], "mask": [paths], "conversations": [...]}`; in the texts `<image>` stands for
the next picture and `<mask>` for the next mask, which lies on the picture named before it. A mask in a
question becomes a region; one in an answer is what the decoder has to find in the last picture, `[DET]`.
Records without a mask in their answers are for a task without a decoder.
"""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.augment import LONGEST, fit
from data_pipelines.conversation import IMAGE_MARK, Turn, link, region_text
from data_pipelines.datasets.llava import read_turns
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode
from data_pipelines.mask_files import read_mask
from data_pipelines.masks import resize_masks
from data_pipelines.records import need, read_records
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts

MASK_MARK = "<mask>"
_MARKS = re.compile(f"({IMAGE_MARK}|{MASK_MARK})")

Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Marked:
    """Turns with regions and links in place of masks.

    Attributes:
      turns: question and answer by turns.
      of_regions, of_links: numbers of the masks that became regions, and links.
      on: the picture that each mask lies on.
    """

    turns: list[Turn]
    of_regions: list[int]
    of_links: list[int]
    on: list[int]


@dataclasses.dataclass(frozen=True)
class InContextSource:
    """Random access to the records of one file."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    viewing: Viewing

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: a missing field, picture or mask, one that cannot be decoded, a mask of another size than
            its picture or without any pixel, or texts that do not name every picture and mask once.
        """
        record = self.records[index]
        place = {"file": self.file, "index": str(record.get("id", index))}
        images = [
            read_picture(self.image_root / name, record=place["index"], field="image")
            for name in _names(record, "image", **place)
        ]
        names = _names(record, "mask", **place) if "mask" in record else []
        marked = self._marked(read_turns(record, **place), len(images), len(names), place["index"])
        masks = [
            self._mask(name, images[picture], place["index"])
            for name, picture in zip(names, marked.on, strict=True)
        ]
        size = self.viewing.tiling.size
        regions = [resize_masks(masks[n][None].astype(np.uint8), size)[0] for n in marked.of_regions]
        meta: dict[str, Any] = {"answers": [text for role, text in marked.turns if role == "gpt"]}
        targets = {}
        if marked.of_links:
            wanted = np.stack([masks[n] for n in marked.of_links])
            view = fit(annotate(images[-1], masks=wanted), self.viewing.size)
            targets = {"grounding_dino": view.targets(np.arange(len(wanted)))}
            meta["classes"] = [f"object {number}" for number in range(1, len(wanted) + 1)]
            if self.viewing.test:
                meta["truth"] = truth(images[-1].shape[:2], meta["classes"], masks=wanted)
        return Example(
            source="in_context",
            file=self.file,
            record=place["index"],
            turns=marked.turns,
            images=[self.viewing.tiling(image) for image in images],
            regions=np.stack(regions) if regions else no_regions(size),
            region_images=np.array([marked.on[n] for n in marked.of_regions], np.int32),
            targets=targets,
            meta=meta,
        )

    def _marked(self, turns: list[Turn], pictures: int, masks: int, record: str) -> Marked:
        """Walks through the texts and gives every mark its picture or mask."""
        found: list[Turn] = []
        of_regions: list[int] = []
        of_links: list[int] = []
        on: list[int] = []
        shown = 0
        for role, text in turns:
            parts = _MARKS.split(text)
            for place, part in enumerate(parts):
                if part == IMAGE_MARK:
                    shown += 1
                elif part == MASK_MARK and role == "human":
                    of_regions.append(len(on))
                    on.append(shown - 1)
                    parts[place] = region_text()
                elif part == MASK_MARK:
                    of_links.append(len(on))
                    on.append(pictures - 1)
                    parts[place] = link("", "det", self.viewing.counts)
            found.append((role, "".join(parts)))
        if (shown, len(on)) != (pictures, masks) or -1 in on:
            wrong = "a mask comes before the first picture"
            if -1 not in on:
                wrong = (
                    f"the texts name {shown} pictures and {len(on)} masks, there are {pictures} and {masks}"
                )
            raise DataError(
                wrong,
                file=self.file,
                record=record,
                field="conversations",
                remedy=f"write {IMAGE_MARK} once for each picture, and after it {MASK_MARK} for its masks",
            )
        return Marked(found, of_regions, of_links, on)

    def _mask(self, name: str, image: Picture, record: str) -> Bool[np.ndarray, "h w"]:
        path = self.image_root / name
        mask = read_mask(path, image.shape[:2], record=record)
        if not mask.any():
            raise DataError(
                "the mask is empty", file=path, record=record, field="mask", remedy="drop the record"
            )
        return mask


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    test: bool = False,
) -> InContextSource:
    """Opens a file of records. Nothing is drawn: views are whole pictures in training, too.

    Args:
      annotations: the `.json` or `.jsonl` file.
      image_root: folder that the paths of pictures and masks start from.
      tile_size: side of a tile in pixels.
      image_mode: "anyres"; every other mode stretches the pictures, so that the regions fit.
      max_tiles: of each picture, for "anyres".
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      test: with the truth of the original picture, for evaluation.

    Raises:
      DataError: a missing or malformed file.
    """
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=0,
        test=test,
        regions=True,
    )
    return InContextSource(annotations, read_records(annotations), pathlib.Path(image_root), viewing)


def _names(record: dict, field: str, *, file: str, index: str) -> list[str]:
    found = need(record, field, list, file=file, index=index)
    if not all(isinstance(name, str) for name in found) or (field == "image" and not found):
        raise DataError(
            f"{found!r:.60} is no list of paths",
            file=file,
            record=index,
            field=field,
            remedy="give the path of each picture in the order of the texts",
        )
    return found
