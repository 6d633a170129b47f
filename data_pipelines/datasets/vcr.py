# SPDX-License-Identifier: Apache-2.0
"""Visual commonsense reasoning: questions that name objects of the picture by number.

A record is `{"image", "boxes": [[x0, y0, x1, y1] in 0..1, ...], "objects": [class, ...], "conversations"}`.
In questions the whole word `3` stands for region 3, in answers for "<its class> at region3". Evaluation
records have `<regions>` in the question for the list of all regions instead, `correct_option`, a letter, and
`category`: "qa" asks for the answer, "qar" for the reason. The n-th of one belongs to the n-th of the other.
"""

import collections
import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines.conversation import IMAGE_MARK, Turn, region_text
from data_pipelines.datasets.llava import read_turns
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.masks import box_mask
from data_pipelines.records import are_numbers, need, read_records

_ALL = "<regions>"
_NUMBER = re.compile(r"\b\d+\b")


@dataclasses.dataclass(frozen=True)
class VcrSource:
    """Random access to the questions of one file."""

    file: str
    records: list[dict]
    pairs: list[int]  # for evaluation: how many records of a record's category come before it
    image_root: pathlib.Path
    tiling: Tiling

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Question `index`.

        Raises:
          DataError: a missing field or picture, a malformed box, an object number without a box, or questions
            that do not name every region exactly once.
        """
        record, place = self.records[index], {"file": self.file, "index": index}
        boxes = need(record, "boxes", list, **place)
        objects = need(record, "objects", list, **place)
        if len(boxes) != len(objects) or not boxes:
            raise DataError(
                f"{len(boxes)} boxes for {len(objects)} objects",
                file=self.file,
                record=index,
                field="boxes",
                remedy="give one box for each object, or drop the record",
            )
        every = range(1, len(boxes) + 1)
        turns: list[Turn] = []
        asked: list[int] = []  # objects that questions name, as they come
        for role, text in read_turns(record, file=self.file, index=index):
            text = text.replace(IMAGE_MARK, "").strip()
            if role == "human" and _ALL in text:
                text = text.replace(_ALL, ", ".join(map(region_text, every)))
                asked += every
            elif role == "human":
                text, numbers = self._replace(text, objects, index, question=True)
                asked += numbers
            else:
                text = self._replace(text, objects, index, question=False)[0].lower()
                text = text[:1].upper() + text[1:]
            turns.append((role, text))
        if sorted(asked) != list(every):
            raise DataError(
                f"the questions name objects {asked}, the record has {len(boxes)} boxes",
                file=self.file,
                record=index,
                field="conversations",
                remedy="name each object once, or drop the record",
            )
        # A region's column takes the next of the regions, whatever number is written in front of it.
        regions = [self._region(boxes[number - 1], index) for number in asked]
        name = need(record, "image", str, **place)
        return Example(
            source="vcr",
            file=self.file,
            record=str(record.get("id", index)),
            turns=[(turns[0][0], f"{IMAGE_MARK}\n{turns[0][1]}"), *turns[1:]],
            images=[self.tiling(load_image(self.image_root / name))],
            regions=np.stack(regions),
            region_images=np.zeros(len(regions), np.int32),
            meta={
                "answers": [text for role, text in turns if role == "gpt"],
                **(self._scored(index) if "category" in record else {}),
            },
        )

    def _scored(self, index: int) -> dict[str, Any]:
        """What the metric `vcr` wants to know."""
        record, place = self.records[index], {"file": self.file, "index": index}
        for field, known in (("category", ("qa", "qar")), ("correct_option", tuple("ABCD"))):
            if need(record, field, str, **place) not in known:
                raise DataError(
                    f"{record[field]!r:.60} is none of {', '.join(known)}",
                    file=self.file,
                    record=index,
                    field=field,
                    remedy="correct it, or drop the record and its pair",
                )
        kind, letter = record["category"], record["correct_option"]
        return {"accepted": (letter,), "kinds": [kind], "group": self.pairs[index]}

    def _region(self, box: Any, index: int) -> UInt8[np.ndarray, "S S"]:
        if not are_numbers(box, 4):
            raise DataError(
                f"{box!r:.60} is not left, top, right, bottom",
                file=self.file,
                record=index,
                field="boxes",
                remedy="give four numbers, shares of the picture's sides",
            )
        size = self.tiling.size
        return box_mask([v * size for v in box], size, size)

    def _replace(self, text: str, objects: list[str], index: int, *, question: bool) -> tuple[str, list[int]]:
        """The text with its numbers replaced, and the numbers."""
        numbers = []

        def name(match: re.Match) -> str:
            number = int(match.group())
            if not 1 <= number <= len(objects):
                raise DataError(
                    f"the text speaks of object {number}, there are {len(objects)}",
                    file=self.file,
                    record=index,
                    field="conversations",
                    remedy="number the objects from 1, or drop the record",
                )
            numbers.append(number)
            return region_text(number) if question else f"{objects[number - 1]} at region{number}"

        return _NUMBER.sub(name, text), numbers


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
) -> VcrSource:
    """Opens a VCR file.

    Args:
      annotations: the `.jsonl` or `.json` file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      image_mode: "anyres"; every other mode stretches the picture, so that the regions fit.
      max_tiles: for "anyres".

    Raises:
      DataError: a missing or malformed file.
    """
    tiling = Tiling(image_mode, tile_size, max_tiles).for_regions
    records, seen, pairs = read_records(annotations), collections.Counter[str](), []
    for record in records:
        category = str(record.get("category"))
        pairs.append(seen[category])
        seen[category] += 1
    return VcrSource(annotations, records, pairs, pathlib.Path(image_root), tiling)
