# SPDX-License-Identifier: Apache-2.0
"""Objects of named classes: COCO, LVIS, Objects365, V3Det, ODinW and other files in COCO's form.

A question names classes, the answer has a link for each of them, whether it is in the picture or not. In
training these are what is there and some that is not; in tests all classes in the file's order, as many at a
time as there are links, each part a record of its own.

A file where nobody looked for every class in every picture says so as LVIS does: `neg_category_ids` of a
picture are known to be absent, of `not_exhaustive_category_ids` only some objects are marked.
"""

import collections
import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from data_pipelines.augment import LONGEST, Annotated, crop
from data_pipelines.class_lists import choose_classes
from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, Turn, link
from data_pipelines.errors import CapacityError, DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.masks import box_mask, segmentation_mask
from data_pipelines.records import need
from data_pipelines.templates import clean_name, load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts

_SMALLEST = 32  # pixels; training drops pictures with a shorter side


@dataclasses.dataclass(frozen=True)
class Wordings:
    """How classes are asked for.

    Attributes:
      questions: with a slot `{classes}`.
      answers: with a slot `{link}`.
      counts: queries of a link.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    counts: QueryCounts

    def turns(self, names: list[str], rng: np.random.Generator | None) -> list[Turn]:
        """Question and answer; the first wordings without `rng`."""
        links = ", ".join(link(name, "det", self.counts) for name in names)
        question = pick(self.questions, rng).replace("{classes}", ", ".join(names))
        answer = pick(self.answers, rng).replace("{link}", links)
        return [("human", f"{IMAGE_MARK}\n{question}"), ("gpt", answer)]


@dataclasses.dataclass(frozen=True)
class DetectionSource:
    """Random access to pictures; in tests to pictures and parts of the classes.

    Attributes:
      coco: the file.
      records: picture id, number of the part of the classes (0 in training).
      names: of the classes.
      class_of: category id -> index into `names`.
      image_root: folder of the pictures.
      viewing: of tower and decoder.
      wordings: of questions and answers.
      masks: whether objects have masks.
      most_classes, most_objects: of one example.
    """

    coco: CocoFile
    records: list[tuple[int, int]]
    names: list[str]
    class_of: dict[int, int]
    image_root: pathlib.Path
    viewing: Viewing
    wordings: Wordings
    masks: bool
    most_classes: int
    most_objects: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          CapacityError: each class of the picture has more objects than there are places.
          DataError: a missing picture, one of another size than the file says, an annotation of an unknown
            category or with a mask that cannot be drawn, or no class to ask for.
        """
        image_id, part = self.records[index]
        name = self.coco.images[image_id]["file_name"]
        image = read_picture(self.image_root / name, record=f"image {image_id}", field="file_name")
        self.coco.check_size(image_id, image)
        rng = self.viewing.rng(index)
        if rng is None:
            return self._tested(image_id, part, image)
        return self._drawn(image_id, image, rng)

    def _drawn(self, image_id: int, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> Example:
        absent, unsure = self._known(image_id)
        objects = [a for a in self.coco.annotations[image_id] if self._class(a) not in unsure]
        present = collections.Counter(self._class(a) for a in objects)
        asked = self._fitting(present, image_id, rng)
        objects = [a for a in objects if self._class(a) in asked]
        view = self.viewing.view(self._annotated(objects, image), rng, keep_one=absent is not None)
        labels = [self._class(objects[i]) for i in view.kept]
        if absent is None:
            absent = set(range(len(self.names))) - (set(present) - asked)
        classes = choose_classes(len(self.names), labels, rng, absent=absent - unsure, most=self.most_classes)
        if not classes:
            raise DataError(
                "no object is left and no class is known to be absent, so there is nothing to ask for",
                file=self.coco.file,
                record=f"image {image_id}",
                remedy="drop the picture",
            )
        names = [self.names[i] for i in classes]
        places = np.array([classes.index(label) for label in labels], np.int64)
        return self._example(image_id, image, view, places, self.wordings.turns(names, rng), names)

    def _tested(self, image_id: int, part: int, image: UInt8[np.ndarray, "h w 3"]) -> Example:
        classes = range(len(self.names))[part * self.most_classes : (part + 1) * self.most_classes]
        names = [self.names[i] for i in classes]
        view = self.viewing.view(self._annotated([], image), None)
        example = self._example(
            image_id, image, view, np.zeros(0, np.int64), self.wordings.turns(names, None), names
        )
        example.meta["truth"] = self._truth(image_id, set(classes))
        return example

    def _example(
        self,
        image_id: int,
        image: UInt8[np.ndarray, "h w 3"],
        view: Annotated,
        labels: Int[np.ndarray, " n"],
        turns: list[Turn],
        names: list[str],
    ) -> Example:
        return Example(
            source="detection",
            file=self.coco.file,
            record=f"image {image_id}",
            turns=turns,
            images=[self.viewing.tiles(image, view)],
            targets={"grounding_dino": view.targets(labels)},
            meta={"classes": names, "image_id": image_id},
        )

    def _known(self, image_id: int) -> tuple[set[int] | None, set[int]]:
        """Classes that are known to be absent (None: all that are not marked), and those marked in part."""
        image = self.coco.images[image_id]

        def classes(field: str) -> set[int]:
            ids = need(image, field, list, file=self.coco.file, index=f"image {image_id}")
            return {self._index(i, f"image {image_id}", field) for i in ids}

        absent = classes("neg_category_ids") if "neg_category_ids" in image else None
        field = "not_exhaustive_category_ids"
        return absent, classes(field) if field in image else set()

    def _fitting(
        self, present: collections.Counter[int], image_id: int, rng: np.random.Generator
    ) -> set[int]:
        """Random classes of the picture, all objects of which find a place."""
        chosen: set[int] = set()
        room = self.most_objects
        for label in rng.permutation(sorted(present)).tolist():
            if present[label] <= room and len(chosen) < self.most_classes:
                chosen.add(label)
                room -= present[label]
        if present and not chosen:
            raise CapacityError(
                f"{min(present.values())} objects of one class where there is room for {self.most_objects}",
                file=self.coco.file,
                record=f"image {image_id}",
                remedy="raise the dataset's `objects` and the task's capacities.objects",
            )
        return chosen

    def _annotated(self, objects: list[dict], image: UInt8[np.ndarray, "h w 3"]) -> Annotated:
        """The picture with these objects, their boxes cut at its border."""
        height, width = image.shape[:2]
        boxes = np.array([_corners(a) for a in objects], np.float32).reshape(-1, 4)
        masks = None
        if self.masks:
            drawn = [self._mask(a, height, width) for a in objects]
            masks = np.array(drawn, bool).reshape(-1, height, width)
        return crop(annotate(image, masks=masks, boxes=boxes), 0, 0, height, width)

    def _mask(self, annotation: dict, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        record = f"annotation {annotation.get('id', '?')}"
        outline = need(annotation, "segmentation", (list, dict), file=self.coco.file, index=record)
        try:
            mask = segmentation_mask(outline, height, width)
        except DataError as error:
            raise error.at(file=self.coco.file, record=record) from error
        # Outlines may be too thin to hold the centre of any pixel.
        return (mask if mask.any() else box_mask(_corners(annotation), height, width)).astype(bool)

    def _truth(self, image_id: int, classes: set[int]) -> dict[str, Any]:
        """All annotations of the file, crowds as such.

        Where a class was not looked for, or not to the end, a crowd covers the picture: then nothing that is
        found counts as wrong, which is LVIS' own rule.
        """
        height, width = self.coco.size(image_id)
        coco = self.coco
        every = [*coco.annotations[image_id], *coco.crowds[image_id], *coco.unusable[image_id]]
        mine = [a for a in every if self._class(a) in classes]
        absent, unsure = self._known(image_id)
        if absent is not None:
            unsure |= classes - absent - {self._class(a) for a in every}
        everywhere = {
            "bbox": [0, 0, width, height],
            "area": height * width,
            "segmentation": {"size": [height, width], "counts": [0, height * width]},
            "iscrowd": 1,
        }
        labels = [self._class(a) for a in mine] + sorted(unsure & classes)
        mine += [everywhere] * (len(labels) - len(mine))
        if self.masks:
            for annotation in mine:
                self._mask(annotation, height, width)  # an outline that cannot be drawn is named here
        found = truth(
            (height, width),
            [self.names[label] for label in labels],
            boxes=np.array([_corners(a) for a in mine], np.float64).reshape(-1, 4),
            segmentations=[a["segmentation"] for a in mine] if self.masks else None,
        )
        if all("area" in a for a in mine):
            found["area"] = np.array([a["area"] for a in mine], np.float64)
        crowd = [bool(a.get("iscrowd", 0) or a.get("ignore", 0)) for a in mine]
        return {**found, "crowd": np.array(crowd, bool)}

    def _class(self, annotation: dict) -> int:
        record = f"annotation {annotation.get('id', '?')}"
        category = need(annotation, "category_id", int, file=self.coco.file, index=record)
        return self._index(category, record, "category_id")

    def _index(self, category: int, record: str, field: str) -> int:
        if category not in self.class_of:
            raise DataError(
                f"{category} is none of the file's categories",
                file=self.coco.file,
                record=record,
                field=field,
                remedy="add the category or drop the annotation",
            )
        return self.class_of[category]


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    masks: bool = False,
    classes: int = 100,
    objects: int = 100,
    clean_names: bool = False,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    augment: bool = True,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> DetectionSource:
    """Opens a COCO file with categories.

    Categories of one name (after cleaning) are one class.

    Args:
      annotations: the file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      masks: also give the masks, which then every object needs (COCO, LVIS); False asks for boxes only.
      classes: most classes of one question: the task's `links` of "det".
      objects: most objects of one training example: the task's capacity. A picture with more is asked for
        some of its classes only.
      clean_names: drop punctuation from the names of classes and turn _ - / into blanks (LVIS). They are
        stripped and in lower case anyway.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture in pixels.
      augment: random views in training, see `viewing.make_viewing`.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "detection" and "detected").
      seed: of view, classes and wording, together with the index.
      test: the whole picture, all classes part by part, the first wording; also pictures without objects.

    Raises:
      DataError: a missing or malformed file, or one without categories.
    """
    if classes < 1 or objects < 1:
        raise ValueError(f"classes {classes} and objects {objects} have to be positive")
    coco = read_coco(annotations)
    names, class_of = _class_names(coco, clean_names)
    if test:
        parts = range(-(-len(names) // classes))
        records = [(image_id, part) for image_id in coco.images for part in parts]
    else:
        records = [
            (image_id, 0)
            for image_id, group in coco.annotations.items()
            if group and min(coco.size(image_id)) >= _SMALLEST
        ]
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        augment=augment,
        counts=counts,
        seed=seed,
        test=test,
    )
    root = pathlib.Path(image_root)
    return DetectionSource(
        coco, records, names, class_of, root, viewing, wordings(templates, counts), masks, classes, objects
    )


def wordings(templates: str | None, counts: QueryCounts) -> Wordings:
    """The wordings of detection, or those of a file of one's own."""
    return Wordings(load_templates("detection", templates), load_templates("detected", templates), counts)


def _class_names(coco: CocoFile, clean: bool) -> tuple[list[str], dict[int, int]]:
    places: dict[str, int] = {}
    class_of = {}
    for category, given in coco.categories.items():
        name = clean_name(given) if clean else given.strip().lower()
        if not name:
            raise DataError(
                f"{given!r} is no name",
                file=coco.file,
                record=f"category {category}",
                field="name",
                remedy="name the category",
            )
        class_of[category] = places.setdefault(name, len(places))
    if not places:
        raise DataError(
            "the file lists no categories",
            file=coco.file,
            field="categories",
            remedy='add {"id": ..., "name": ...} for each class',
        )
    return list(places), class_of


def _corners(annotation: dict) -> tuple[float, float, float, float]:
    x, y, width, height = annotation["bbox"]
    return x, y, x + width, y + height
