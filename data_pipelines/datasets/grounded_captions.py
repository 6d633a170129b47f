# SPDX-License-Identifier: Apache-2.0
"""Answers that point at what they speak of: Groma's conversations, Flickr30K in the same form.

A record is `{"file_name", "height", "width", "boxes": [[x, y, w, h]], "conversation": [{"value"}]}`, question
and answer by turns. An answer has `<p>a cat</p> <roi><ground_box></roi>` and, in `box_inds`, the
numbers of its boxes in the order of the `<ground_box>`. Every `<roi>` becomes a link, which all of its boxes
belong to.
"""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

from data_pipelines.augment import LONGEST, fit
from data_pipelines.conversation import IMAGE_MARK, Turn, link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode, check_size
from data_pipelines.records import are_numbers, need, read_records
from data_pipelines.templates import load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import SPECIAL_TOKENS, QueryCounts

_OPEN, _CLOSE = SPECIAL_TOKENS["det_start"], SPECIAL_TOKENS["det_end"]
_AGREEING = ("Sure,", "Of course,", "Certainly,", "Yes,")  # before an answer that starts with a phrase
_ROI = re.compile(r"(?:<p>(?P<phrase>.*?)</p>\s*)?<roi>(?P<boxes>.*?)</roi>", re.DOTALL)
_BOX = "<ground_box>"


@dataclasses.dataclass(frozen=True)
class Grounded:
    """A conversation with links.

    Attributes:
      turns: question and answer by turns.
      names: what each link points at; distinct.
      boxes: numbers of the record's boxes.
      labels: the link of each of them.
    """

    turns: list[Turn]
    names: list[str]
    boxes: list[int]
    labels: list[int]


@dataclasses.dataclass(frozen=True)
class GroundedCaptionSource:
    """Random access to the records of one file; the decoder sees the whole picture in training, too."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    viewing: Viewing
    requests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: a missing field or picture, a picture of another size than the record says, a box that is
            malformed or outside of the picture, or answers that do not fit their boxes.
        """
        record, rng = self.records[index], self.viewing.rng(index)
        place = {"file": self.file, "index": str(record.get("id", index))}
        name = need(record, "file_name", str, **place)
        size = need(record, "height", int, **place), need(record, "width", int, **place)
        image = read_picture(self.image_root / name, record=place["index"], field="file_name")
        check_size(image, size, file=self.file, record=place["index"])
        corners = self._corners(need(record, "boxes", list, **place), size, place["index"])
        grounded = self._grounded(
            need(record, "conversation", list, **place), len(corners), rng, place["index"]
        )
        boxes = corners[grounded.boxes]
        view = fit(annotate(image, boxes=boxes), self.viewing.size)
        meta: dict[str, Any] = {
            "classes": grounded.names,
            "answers": [text for role, text in grounded.turns if role == "gpt"],
        }
        if self.viewing.test:
            labels = [grounded.names[label] for label in grounded.labels]
            meta["truth"] = truth(size, labels, boxes=boxes)
        return Example(
            source="grounded_captions",
            file=self.file,
            record=place["index"],
            turns=grounded.turns,
            images=[self.viewing.tiles(image, view)],
            targets={"grounding_dino": view.targets(np.array(grounded.labels, np.int64))},
            meta=meta,
        )

    def _corners(self, boxes: list, size: tuple[int, int], record: str) -> np.ndarray:
        found = np.zeros((len(boxes), 4), np.float32)
        for number, box in enumerate(boxes):
            if are_numbers(box, 4):
                x, y, w, h = box
                found[number] = x, y, x + w, y + h
                cut = found[number].clip(0, [size[1], size[0]] * 2)
                if (cut[2:] > cut[:2]).all():
                    continue
            raise DataError(
                f"box {number}, {box!r:.60}, is not x, y, width, height of a part of the picture",
                file=self.file,
                record=record,
                field="boxes",
                remedy="repair the box or drop the record",
            )
        return found

    def _grounded(self, entries: list, boxes: int, rng: np.random.Generator | None, record: str) -> Grounded:
        turns: list[Turn] = []
        names: list[str] = []
        numbers: list[int] = []
        labels: list[int] = []
        for number, entry in enumerate(entries):
            place = {"file": self.file, "index": f"{record}, turn {number}"}
            if not isinstance(entry, dict):
                raise DataError("not an object", file=self.file, record=place["index"], remedy="give a value")
            text = need(entry, "value", str, **place).replace(IMAGE_MARK, "").strip()
            if number % 2 == 0:
                request = f"{text} {pick(self.requests, rng)}"
                turns.append(("human", request if number else f"{IMAGE_MARK}\n{request}"))
                continue
            found = list(_ROI.finditer(text))
            mine = [roi["boxes"].count(_BOX) for roi in found]
            given = need(entry, "box_inds", list, **place) if found or "box_inds" in entry else []
            good = all(isinstance(i, int) and 0 <= i < boxes for i in given)
            if sum(mine) != len(given) or 0 in mine or not good:
                raise DataError(
                    f"{given!r:.60} for {sum(mine)} {_BOX} in {len(mine)} <roi>, of {boxes} boxes",
                    file=self.file,
                    record=place["index"],
                    field="box_inds",
                    remedy=f"give the number of a box for each {_BOX}, at least one in each <roi>",
                )
            labels += np.repeat(np.arange(len(names), len(names) + len(found)), mine).tolist()
            numbers += given
            names += [(roi["phrase"] or "object").strip() for roi in found]
            turns.append(("gpt", self._answer(text, rng)))
        return Grounded(turns, _distinct(names), numbers, labels)

    def _answer(self, text: str, rng: np.random.Generator | None) -> str:
        """Phrases in `<det>`, links in place of boxes."""
        text = re.sub(r"<roi>.*?</roi>", link("", "det", self.viewing.counts), text, flags=re.DOTALL)
        text = text.replace("<p>", _OPEN).replace("</p>", _CLOSE)
        return f"{pick(_AGREEING, rng)} {text}" if text.startswith(_OPEN) else text


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> GroundedCaptionSource:
    """Opens a file of records.

    Args:
      annotations: the `.json` or `.jsonl` file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with requests of one's own (key "grounded_caption"), which follow the questions.
      seed: of the requests, together with the index.
      test: the first request; with the truth of the original picture, for evaluation.

    Raises:
      DataError: a missing or malformed file.
    """
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
    )
    requests = load_templates("grounded_caption", templates)
    return GroundedCaptionSource(
        annotations, read_records(annotations), pathlib.Path(image_root), viewing, requests
    )


def _distinct(names: list[str]) -> list[str]:
    """The second "a man" becomes "a man (2)": metrics tell links apart by name."""
    return [
        name if name not in names[:place] else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
