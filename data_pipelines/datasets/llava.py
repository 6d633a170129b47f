# SPDX-License-Identifier: Apache-2.0
"""Chat about a picture, or about none: LLaVA's conversation files.

A record is `{"image": "relative/path.jpg", "conversations": [{"from": "human" | "gpt", "value": text}, ...]}`
with `image` left out for text-only chat. The file is a JSON list or JSON lines.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from data_pipelines.conversation import IMAGE_MARK, Turn
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.records import need, read_records


@dataclasses.dataclass(frozen=True)
class LlavaSource:
    """Random access to the conversations of one file."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    tiling: Tiling

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Conversation `index`.

        Raises:
          DataError: a missing field or picture, or `<image>` in a conversation without a picture.
        """
        record = self.records[index]
        turns = read_turns(record, file=self.file, index=index)
        images = []
        if "image" in record:
            path = self.image_root / need(record, "image", str, file=self.file, index=index)
            images.append(self.tiling(load_image(path)))
            turns = keep_first_images(turns)
        marks = sum(text.count(IMAGE_MARK) for _, text in turns)
        if marks != len(images):
            raise DataError(
                f"the conversation has {marks} {IMAGE_MARK} for {len(images)} pictures",
                file=self.file,
                record=index,
                field="conversations",
                remedy=f"write {IMAGE_MARK} once, in the first turn, if the record has an image",
            )
        return Example(
            source="llava",
            file=self.file,
            record=str(record.get("id", index)),
            turns=turns,
            images=images,
            regions=no_regions(self.tiling.size),
            meta={"answers": [text for role, text in turns if role == "gpt"]},
        )


def load(
    *,
    annotations: str,
    tile_size: int,
    image_root: str = "",
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
) -> LlavaSource:
    """Opens a conversation file.

    Args:
      annotations: the `.json` or `.jsonl` file.
      tile_size: side of a tile in pixels (336 for 7B).
      image_root: folder that the `image` paths start from; the file's own folder if empty.
      image_mode: see `data_pipelines.images.Tiling`.
      max_tiles: for "anyres".

    Raises:
      DataError: a missing or malformed file.
    """
    root = pathlib.Path(image_root) if image_root else pathlib.Path(annotations).parent
    return LlavaSource(annotations, read_records(annotations), root, Tiling(image_mode, tile_size, max_tiles))


def read_turns(record: dict, *, file: str, index: int | str) -> list[Turn]:
    """The turns of a record's `conversations`.

    Raises:
      DataError: a missing field, an empty list or an unknown speaker.
    """
    turns = []
    entries = need(record, "conversations", list, file=file, index=index)
    for number, entry in enumerate(entries):
        where = f"{index}, turn {number}"
        if not isinstance(entry, dict):
            raise DataError("not an object", file=file, record=where, remedy="give from and value")
        role = need(entry, "from", str, file=file, index=where)
        if role not in ("human", "gpt"):
            raise DataError(
                f"unknown speaker {role!r}", file=file, record=where, field="from", remedy="human or gpt"
            )
        turns.append((role, need(entry, "value", str, file=file, index=where)))
    if not turns:
        raise DataError("no turns", file=file, record=index, field="conversations", remedy="drop the record")
    return turns


def keep_first_images(turns: Sequence[Turn]) -> list[Turn]:
    """Drops `<image>` from all turns but the first, where the official chat data may repeat it."""
    rest = [(role, _without_mark(text)) for role, text in turns[1:]]
    return [*turns[:1], *rest]


def _without_mark(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip() if IMAGE_MARK in text else text
