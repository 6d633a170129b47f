# SPDX-License-Identifier: Apache-2.0
"""People in crowds: CrowdHuman's `.odgt` files, an object a line.

    {"ID": "273271,c9db000d5146c15", "gtboxes": [{"tag": "person", "fbox": [x, y, w, h], "vbox": [...],
     "extra": {"ignore": 0}}, {"tag": "mask", "fbox": [...]}]}

`fbox` is the full body, also what is hidden or outside the picture, `vbox` what is visible. A tag "mask" and
`extra.ignore` mark regions that evaluation ignores: crowds too dense to count, statues, reflections.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.augment import LONGEST, crop
from data_pipelines.datasets.detection import Wordings, wordings
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.records import need, need_box, read_lines
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts

_CLASS = "person"


@dataclasses.dataclass(frozen=True)
class People:
    """The boxes of one picture.

    Attributes:
      name: of the picture, without ending.
      boxes: left, top, right, bottom in pixels.
      ignored: whether a box is no single person.
    """

    name: str
    boxes: Float[np.ndarray, "n 4"]
    ignored: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class CrowdSource:
    """Random access to pictures of people."""

    file: str
    pictures: list[People]
    image_root: pathlib.Path
    viewing: Viewing
    wordings: Wordings

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        """Picture `index`.

        Raises:
          DataError: a missing picture.
        """
        people, rng = self.pictures[index], self.viewing.rng(index)
        record = f"ID {people.name}"
        image = read_picture(self.image_root / f"{people.name}.jpg", record=record, field="ID")
        height, width = image.shape[:2]
        boxes = people.boxes[~people.ignored][: None if rng else 0]
        whole = crop(annotate(image, boxes=boxes), 0, 0, height, width)
        view = self.viewing.view(whole, rng)
        meta: dict[str, Any] = {"classes": [_CLASS], "image_id": people.name}
        if rng is None:
            found = truth((height, width), [_CLASS] * len(people.boxes), boxes=people.boxes)
            meta["truth"] = {**found, "crowd": people.ignored}
        return Example(
            source="crowdhuman",
            file=self.file,
            record=record,
            turns=self.wordings.turns([_CLASS], rng),
            images=[self.viewing.tiles(image, view)],
            targets={"grounding_dino": view.targets(np.zeros(len(view.kept), np.int64))},
            meta=meta,
        )


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    box: str = "fbox",
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> CrowdSource:
    """Opens an `.odgt` file.

    Args:
      annotations: the file.
      image_root: folder of the pictures, `<ID>.jpg`.
      tile_size: side of a tile in pixels.
      box: "fbox", the full body (the usual evaluation), or "vbox", what is visible of it.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "detection" and "detected").
      seed: of view and wording, together with the index.
      test: the whole picture, the first wording; also pictures without people. Training leaves those and
        ignored regions out, and views without anybody.

    Raises:
      DataError: a missing or malformed file; names the line.
    """
    if box not in ("fbox", "vbox"):
        raise ValueError(f"unknown box {box!r}, there are fbox, vbox")
    pictures = [_people(record, box, annotations, line) for line, record in read_lines(annotations)]
    if not test:
        pictures = [people for people in pictures if not people.ignored.all()]
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
    )
    return CrowdSource(annotations, pictures, pathlib.Path(image_root), viewing, wordings(templates, counts))


def _people(record: Any, form: str, file: str, line: str) -> People:
    if not isinstance(record, dict):
        raise DataError("no object", file=file, record=line, remedy="repair the line")
    boxes, ignored = [], []
    for entry in need(record, "gtboxes", list, file=file, index=line):
        x, y, width, height = need_box(entry, form, file=file, index=line)
        boxes.append((x, y, x + width, y + height))
        marked = entry.get("tag") != _CLASS or bool(entry.get("extra", {}).get("ignore", 0))
        # Evaluation ignores what has no extent; training could not learn it.
        ignored.append(marked or width < 1 or height < 1)
    name = need(record, "ID", str, file=file, index=line)
    return People(name, np.array(boxes, np.float64).reshape(-1, 4), np.array(ignored, bool))
