# SPDX-License-Identifier: Apache-2.0
"""Osprey's conversations about masks, in its five variants.

A record is `{"file_name", "height", "width", "annotation": [{"segmentation"}, ...]}` with `conversations`, or
with `description` for the variant "detailed". In the texts a region is `<region3>`.

Variants (`KINDS`):
  conversation, part, short: the first question lists all regions, texts name them. "part" and "short" ask for
    a word or phrase.
  detailed: one round for each region; the answers are the lines of `description`, "<region3>: ...".
  negative: (LVIS) round i speaks of region i.
"""

import dataclasses
import pathlib
import re

import numpy as np
from jaxtyping import UInt8

from data_pipelines.coco_file import mask_in_tile
from data_pipelines.conversation import IMAGE_MARK, Turn, region_text
from data_pipelines.datasets.llava import read_turns
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode, Tiling, check_size, load_image
from data_pipelines.records import need, read_records
from data_pipelines.templates import load_templates, pick

KINDS = ("conversation", "part", "short", "detailed", "negative")
SHORT_REQUEST = "Answer with a single word or phrase."
_NAME = re.compile(r"<region\d+>")


@dataclasses.dataclass(frozen=True)
class OspreySource:
    """Random access to the records of one file."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    tiling: Tiling
    kind: str
    templates: tuple[str, ...]
    seed: int
    test: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: a missing field or picture, one of another size than the record says, a mask that is
            empty in the tile, or a text that does not speak of the regions it has.
        """
        record, place = self.records[index], {"file": self.file, "index": index}
        rng = None if self.test else generator(self.seed, index)
        size = need(record, "height", int, **place), need(record, "width", int, **place)
        regions = self._regions(record, index, size)
        if self.kind == "detailed":
            turns = self._descriptions(record, index, len(regions), rng)
        elif self.kind == "negative":
            turns = self._rounds(record, index, len(regions))
        else:
            turns = self._listed(record, index, len(regions), rng)
        name = need(record, "file_name", str, **place)
        if self.kind != "negative":
            # These name COCO 2014 pictures, "COCO_train2014_000000000009.jpg"; 2017 keeps the number.
            name = name.rpartition("_")[2]
        turns = [(turns[0][0], f"{IMAGE_MARK}\n{turns[0][1]}"), *turns[1:]]
        image = load_image(self.image_root / name)
        check_size(image, size, file=self.file, record=index)
        return Example(
            source="osprey",
            file=self.file,
            record=str(record.get("id", index)),
            turns=turns,
            images=[self.tiling(image)],
            regions=regions,
            region_images=np.zeros(len(regions), np.int32),
            meta={"answers": [text for role, text in turns if role == "gpt"]},
        )

    def _regions(self, record: dict, index: int, size: tuple[int, int]) -> UInt8[np.ndarray, "n S S"]:
        entries = need(record, "annotation", list, file=self.file, index=index)
        if not entries:
            raise DataError(
                "no regions", file=self.file, record=index, field="annotation", remedy="drop the record"
            )
        masks = []
        for number, entry in enumerate(entries, 1):
            where = f"{index}, region {number}"
            segmentation = need(entry, "segmentation", (list, dict), file=self.file, index=where)
            masks.append(mask_in_tile(segmentation, *size, self.tiling.size, file=self.file, index=where))
        return np.stack(masks)

    def _listed(self, record: dict, index: int, n: int, rng) -> list[Turn]:
        turns = read_turns(record, file=self.file, index=index)
        turns = [(role, re.sub("[<>]", "", text.replace(IMAGE_MARK, "")).strip()) for role, text in turns]
        names = ", ".join(region_text(number) for number in range(1, n + 1))
        opening = pick(self.templates, rng).replace("{n}", str(n)).replace("{region}", names)
        turns[0] = (turns[0][0], f"{opening} {turns[0][1]}")
        if self.kind != "conversation":
            turns = [(r, f"{text} {SHORT_REQUEST}" if r == "human" else text) for r, text in turns]
        return turns

    def _descriptions(self, record: dict, index: int, n: int, rng) -> list[Turn]:
        lines = need(record, "description", list, file=self.file, index=index)
        self._same_count(len(lines), n, index, "description")
        turns = []
        for number, line in enumerate(lines, 1):
            prefix = f"<region{number}>:"
            if not isinstance(line, str) or not line.startswith(prefix):
                raise DataError(
                    f"{line!r:.60} does not start with {prefix}",
                    file=self.file,
                    record=index,
                    field="description",
                    remedy="give one line for each region, in order",
                )
            question = pick(self.templates, rng).replace("{region}", region_text(number))
            turns += [("human", question), ("gpt", line.removeprefix(prefix).strip())]
        return turns

    def _rounds(self, record: dict, index: int, n: int) -> list[Turn]:
        turns = read_turns(record, file=self.file, index=index)
        self._same_count(len(turns) / 2, n, index, "conversations")
        placed = []
        for number, (role, text) in enumerate(turns):
            text = text.replace(IMAGE_MARK, "").strip()
            if role == "human":
                text, found = _NAME.subn(region_text(number // 2 + 1), text)
                if found != 1:
                    raise DataError(
                        f"the question names {found} regions",
                        file=self.file,
                        record=f"{index}, turn {number}",
                        field="value",
                        remedy="name one region in each question",
                    )
            else:
                text = re.sub("[<>]", "", text)
            placed.append((role, text))
        return placed

    def _same_count(self, found: float | int, n: int, index: int, field: str) -> None:
        if found != n:
            raise DataError(
                f"{found:g} rounds for {n} regions",
                file=self.file,
                record=index,
                field=field,
                remedy="give one round for each region, or drop the record",
            )


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    kind: str,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> OspreySource:
    """Opens one of Osprey's files.

    Args:
      annotations: the `.json` or `.jsonl` file.
      image_root: folder of the COCO 2017 pictures ("negative" names the sub-folder itself).
      tile_size: side of a tile in pixels.
      kind: one of `KINDS`.
      image_mode: "anyres"; every other mode stretches the picture, so that the regions fit.
      max_tiles: for "anyres".
      templates: JSON file with wordings of one's own (keys "region_list" and "region_detail").
      seed: of the wording, together with the index.
      test: always the first wording.

    Raises:
      DataError: a missing or malformed file.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}, there are {', '.join(KINDS)}")
    wordings = load_templates("region_detail" if kind == "detailed" else "region_list", templates)
    tiling = Tiling(image_mode, tile_size, max_tiles).for_regions
    records = read_records(annotations)
    return OspreySource(annotations, records, pathlib.Path(image_root), tiling, kind, wordings, seed, test)
