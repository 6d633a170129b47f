# SPDX-License-Identifier: Apache-2.0
"""Objects from marks on them: COCO's objects with marks drawn here, or COCO-Interactive with its own.

Every mark is a region of the question and a class of the answer: `region1[DET]...`. The tower sees the
decoder's view, so that marks lie on what both see.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.augment import LONGEST, Annotated
from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, link, region_text
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode, check_size
from data_pipelines.masks import resize_masks, segmentation_mask
from data_pipelines.records import need, read_records
from data_pipelines.templates import load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from data_pipelines.visual_prompts import SHAPES, draw_prompt
from vllm2_jax.tokens import QueryCounts

# Marks that COCO-Interactive brings; its fields are `point_visual_prompt_mask` and so on.
GIVEN = ("point", "scribble", "box", "mask")
_SMALLEST = 4  # pixels of the decoder's view that a box has to exceed
_MOST = 20  # marks of one example


@dataclasses.dataclass(frozen=True)
class Wordings:
    """How marks are asked about: questions with a slot `{region}`, answers with a slot `{link}`."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def turns(
        self, count: int, rng: np.random.Generator | None, counts: QueryCounts
    ) -> list[tuple[str, str]]:
        """Question and answer about regions 1 to `count`."""
        regions = ", ".join(region_text(number) for number in range(1, count + 1))
        links = ", ".join(link(name, "det", counts) for name in region_names(count))
        question = pick(self.questions, rng).replace("{region}", regions)
        return [
            ("human", f"{IMAGE_MARK}\n{question}"),
            ("gpt", pick(self.answers, rng).replace("{link}", links)),
        ]


def region_names(count: int) -> list[str]:
    """The classes of an example: one for each mark."""
    return [f"region{number}" for number in range(1, count + 1)]


@dataclasses.dataclass(frozen=True)
class DrawnSource:
    """Random access to pictures with objects, on which marks are drawn.

    Attributes:
      coco: the file.
      image_ids: pictures with objects.
      image_root: folder of the pictures.
      viewing: of tower and decoder.
      wordings: of questions and answers.
      shapes: of marks, equally likely.
      most: marks of one example.
    """

    coco: CocoFile
    image_ids: list[int]
    image_root: pathlib.Path
    viewing: Viewing
    wordings: Wordings
    shapes: tuple[str, ...]
    most: int

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        """Picture `index`. Marks are drawn in tests too, the same ones every time.

        Raises:
          DataError: a missing picture, one of another size than the file says, an outline that is missing or
            cannot be drawn, or no object that is large enough for a mark.
        """
        image_id, rng = self.image_ids[index], self.viewing.rng(index)
        record = f"image {image_id}"
        name = self.coco.images[image_id]["file_name"]
        image = read_picture(self.image_root / name, record=record, field="file_name")
        self.coco.check_size(image_id, image)
        objects = self.coco.annotations[image_id]
        height, width = image.shape[:2]
        masks = [
            _outline(a, "segmentation", height, width, self.coco.file, f"annotation {a.get('id', '?')}")
            for a in objects
        ]
        x, y, w, h = np.array([a["bbox"] for a in objects], np.float32).T
        boxes = np.stack([x, y, x + w, y + h], 1)
        view = self.viewing.view(annotate(image, masks=np.stack(masks), boxes=boxes), rng)

        drawing = generator(self.viewing.seed, index) if rng is None else rng
        prompts, chosen = self._draw(view, drawing)
        if not chosen:
            raise DataError(
                f"no object is large enough for a mark at {self.viewing.tiling.size} pixels",
                file=self.coco.file,
                record=record,
                remedy="drop the picture or use larger tiles",
            )
        view = _part(view, chosen)
        names = region_names(len(chosen))
        meta: dict[str, Any] = {"classes": names, "image_id": image_id}
        if self.viewing.test:
            outlines = [objects[i]["segmentation"] for i in view.kept]
            meta["truth"] = truth((height, width), names, boxes=boxes[view.kept], segmentations=outlines)
        return _example(self.viewing, self.coco.file, record, view, prompts, self.wordings, rng, meta)

    def _draw(self, view: Annotated, rng: np.random.Generator) -> tuple[Bool[np.ndarray, "n S S"], list[int]]:
        """Marks, and the objects of the view they lie on, in random order."""
        sides = view.boxes[:, 2:] - view.boxes[:, :2]
        if view.masks is None:
            raise ValueError("marks are drawn on masks")
        prompts: list[np.ndarray] = []
        chosen: list[int] = []
        for number in rng.permutation(np.flatnonzero((sides > _SMALLEST).all(1))).tolist():
            if len(chosen) == self.most:
                break
            shown = resize_masks(view.masks[[number]].astype(np.uint8), self.viewing.tiling.size)[0]
            shape = self.shapes[int(rng.integers(len(self.shapes)))]
            prompt = draw_prompt(shape, shown.astype(bool), rng)
            if prompt.any():
                prompts.append(prompt)
                chosen.append(number)
        return np.array(prompts, bool), chosen


@dataclasses.dataclass(frozen=True)
class GivenSource:
    """Random access to the pictures of COCO-Interactive, with marks of one shape; for tests."""

    file: str
    records: list[dict]
    image_root: pathlib.Path
    viewing: Viewing
    wordings: Wordings
    shape: str
    most: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Picture `index` and all its marks that are not empty.

        Raises:
          DataError: a missing field or picture, one of another size than the file says, a mask that cannot be
            drawn, no marks, or more of them than an example may have.
        """
        entry = self.records[index]
        info = need(entry, "image_info", dict, file=self.file, index=index)
        place = {"file": self.file, "index": str(entry.get("img_id", index))}
        name = need(info, "file_name", str, **place)
        height, width = (need(info, field, int, **place) for field in ("height", "width"))
        image = read_picture(self.image_root / name, record=place["index"], field="file_name")
        check_size(image, (height, width), file=self.file, record=place["index"])
        prompts, masks, outlines = [], [], []
        for number, annotation in enumerate(need(entry, "anns", list, **place)):
            at = (height, width, self.file, f"{place['index']}, annotation {number}")
            mark = _outline(annotation, f"{self.shape}_visual_prompt_mask", *at)
            if mark.any():
                prompts.append(mark)
                masks.append(_outline(annotation, "segmentation", *at))
                outlines.append(annotation["segmentation"])
        if not 0 < len(prompts) <= self.most:
            raise DataError(
                f"{len(prompts)} marks where there may be 1 to {self.most}",
                file=self.file,
                record=place["index"],
                field="anns",
                remedy="raise `most` and the task's regions and links" if prompts else "drop the record",
            )
        view = self.viewing.view(annotate(image, masks=np.stack(masks)), None)
        names = region_names(len(masks))
        meta = {"classes": names, "image_id": entry.get("img_id")}
        meta["truth"] = truth((height, width), names, masks=np.stack(masks), segmentations=outlines)
        tiles = resize_masks(np.stack(prompts).astype(np.uint8), self.viewing.tiling.size).astype(bool)
        return _example(self.viewing, self.file, place["index"], view, tiles, self.wordings, None, meta)


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    shapes: Sequence[str] = tuple(SHAPES),
    given: str | None = None,
    most: int = _MOST,
    image_mode: Mode = "stretch",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> DrawnSource | GivenSource:
    """Opens a COCO file with masks, or COCO-Interactive.

    Args:
      annotations: the file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels; marks are drawn at this size.
      shapes: of the marks drawn, keys of `visual_prompts.SHAPES`.
      given: the file is COCO-Interactive (a JSON list with `image_info` and `anns`): take its marks of this
        shape, one of `GIVEN`.
      most: marks of one example.
      image_mode: "stretch", one tile as in the official training, or "anyres".
      max_tiles: for "anyres".
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "interactive" and "outlined").
      seed: of view, marks and wording, together with the index.
      test: the whole picture, the first wording.

    Raises:
      DataError: a missing or malformed file.
    """
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown or not shapes:
        raise ValueError(f"unknown shapes {unknown or shapes}, there are {', '.join(SHAPES)}")
    if given is not None and (given not in GIVEN or not test):
        raise ValueError(f"given={given!r}: COCO-Interactive is for tests and has {', '.join(GIVEN)}")
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
        regions=True,
    )
    wordings = Wordings(load_templates("interactive", templates), load_templates("outlined", templates))
    root = pathlib.Path(image_root)
    if given is not None:
        return GivenSource(annotations, read_records(annotations), root, viewing, wordings, given, most)
    coco = read_coco(annotations)
    image_ids = [image_id for image_id, group in coco.annotations.items() if group]
    return DrawnSource(coco, image_ids, root, viewing, wordings, tuple(shapes), most)


def _example(
    viewing: Viewing,
    file: str,
    record: str,
    view: Annotated,
    prompts: Bool[np.ndarray, "n S S"],
    wordings: Wordings,
    rng: np.random.Generator | None,
    meta: dict[str, Any],
) -> Example:
    return Example(
        source="interactive",
        file=file,
        record=record,
        turns=wordings.turns(len(prompts), rng, viewing.counts),
        images=[viewing.tiling(view.image)],
        regions=prompts.astype(np.uint8),
        region_images=np.zeros(len(prompts), np.int32),
        targets={"grounding_dino": view.targets(np.arange(len(prompts)))},
        meta=meta,
    )


def _part(view: Annotated, chosen: Sequence[int]) -> Annotated:
    """The objects of these numbers, in this order."""
    return dataclasses.replace(
        view,
        boxes=view.boxes[chosen],
        masks=None if view.masks is None else view.masks[chosen],
        area=None if view.area is None else view.area[chosen],
        kept=view.kept[chosen],
    )


def _outline(
    annotation: dict, field: str, height: int, width: int, file: str, record: str
) -> UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]:
    outline = need(annotation, field, (list, dict), file=file, index=record)
    try:
        return segmentation_mask(outline, height, width).astype(bool)
    except DataError as error:
        raise DataError(error.message, file=file, record=record, field=field, remedy=error.remedy) from error
