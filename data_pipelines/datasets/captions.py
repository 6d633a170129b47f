# SPDX-License-Identifier: Apache-2.0
"""Pictures with a caption, as a request and its answer.

A record is `{"image": "relative/path.jpg", "caption": text}` (other names by option); JSON list or JSON
lines. Used to teach the connector (format "plain", which prints only picture and caption) and for
captioning.
"""

import dataclasses
import pathlib

from data_pipelines.conversation import IMAGE_MARK
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.records import need, read_records
from data_pipelines.templates import load_templates, pick


@dataclasses.dataclass(frozen=True)
class CaptionSource:
    """Random access to captioned pictures; `templates` empty asks nothing but shows the picture."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    tiling: Tiling
    templates: tuple[str, ...]
    image_field: str
    caption_field: str
    seed: int
    test: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Picture `index` with its caption; a list of captions gives one at random (the first in tests).

        Raises:
          DataError: a missing field or picture, or an empty caption.
        """
        record, place = self.records[index], {"file": self.file, "index": index}
        rng = None if self.test else generator(self.seed, index)
        name = need(record, self.image_field, str, **place)
        captions = need(record, self.caption_field, (str, list), **place)
        captions = [captions] if isinstance(captions, str) else captions
        if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
            raise DataError(
                "no caption", file=self.file, record=index, field=self.caption_field, remedy="drop the record"
            )
        caption = pick(captions, rng).strip()
        question = f"{IMAGE_MARK}\n{pick(self.templates, rng)}" if self.templates else IMAGE_MARK
        return Example(
            source="captions",
            file=self.file,
            record=str(record.get("id", index)),
            turns=[("human", question), ("gpt", caption)],
            images=[self.tiling(load_image(self.image_root / name))],
            regions=no_regions(self.tiling.size),
            meta={"answers": captions},
        )


def load(
    *,
    annotations: str,
    tile_size: int,
    image_root: str = "",
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    ask: bool = True,
    templates: str | None = None,
    image_field: str = "image",
    caption_field: str = "caption",
    seed: int = 0,
    test: bool = False,
) -> CaptionSource:
    """Opens a caption file.

    Args:
      annotations: the `.json` or `.jsonl` file.
      tile_size: side of a tile in pixels (336 for 7B).
      image_root: folder that the picture paths start from; the file's own folder if empty.
      image_mode: see `data_pipelines.images.Tiling`.
      max_tiles: for "anyres".
      ask: put a request before the caption; False for connector pretraining in format "plain".
      templates: JSON file with requests of one's own (`templates.load_templates`, key "caption").
      image_field: key of the picture's path.
      caption_field: key of the caption or the list of captions.
      seed: of the choice of request and caption, together with the index.
      test: always the first of both.

    Raises:
      DataError: a missing or malformed file.
    """
    root = pathlib.Path(image_root) if image_root else pathlib.Path(annotations).parent
    wordings = load_templates("caption", templates) if ask else ()
    tiling = Tiling(image_mode, tile_size, max_tiles)
    records = read_records(annotations)
    return CaptionSource(annotations, records, root, tiling, wordings, image_field, caption_field, seed, test)
