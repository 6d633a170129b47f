# SPDX-License-Identifier: Apache-2.0
"""How many there are: the objects of one class in a file of COCO's form, asked for by name or by an example.

The answer marks them with one link and then says the number. It comes after the link, so a link's states
never know it. The tower sees the decoder's view, since the number is that of the objects in it.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from data_pipelines.augment import LONGEST
from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, link, region_text
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode
from data_pipelines.masks import box_in_tile
from data_pipelines.templates import clean_name, load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts

WAYS = ("name", "example", "mixed")


@dataclasses.dataclass(frozen=True)
class CountingSource:
    """Random access to questions: a class of a picture; a random one of its classes in training.

    Attributes:
      coco: the file.
      records: for each record its picture and the classes to choose from.
      image_root: folder of the pictures.
      viewing: of tower and decoder.
      by: one of `WAYS`.
      clean_names: as in `load`.
      by_name, by_example, answers: wordings.
    """

    coco: CocoFile
    records: list[tuple[int, tuple[str, ...]]]
    image_root: pathlib.Path
    viewing: Viewing
    by: str
    clean_names: bool
    by_name: tuple[str, ...]
    by_example: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: a missing picture, or one of another size than the file says.
        """
        image_id, classes = self.records[index]
        rng, size = self.viewing.rng(index), self.viewing.tiling.size
        record = f"image {image_id}"
        file_name = self.coco.images[image_id]["file_name"]
        image = read_picture(self.image_root / file_name, record=record, field="file_name")
        self.coco.check_size(image_id, image)
        name = pick(classes, rng)
        boxes = np.array(
            [_corners(a) for a in _objects(self.coco, image_id, self.clean_names)[name]], np.float32
        )
        view = self.viewing.view(annotate(image, boxes=boxes), rng)
        n, regions = len(view.boxes), no_regions(size)
        by = self.by
        if by == "mixed":
            by = "name" if rng is None or rng.random() < 0.5 else "example"
        if by == "name":
            question = pick(self.by_name, rng).replace("{classes}", name)
        else:
            name = "region1"
            example = 0 if rng is None else int(rng.integers(n))
            height, width = view.image.shape[:2]
            regions = box_in_tile(view.boxes[example], height, width, size)[None]
            question = pick(self.by_example, rng).replace("{region}", region_text(1))
        links = link(name, "det", self.viewing.counts)
        answer = pick(self.answers, rng).replace("{link}", links).replace("{n}", str(n))
        meta: dict[str, Any] = {"classes": [name], "image_id": image_id, "count": n}
        if self.viewing.test:
            meta["truth"] = truth(image.shape[:2], [name] * n, boxes=boxes)
        return Example(
            source="counting",
            file=self.coco.file,
            record=record,
            turns=[("human", f"{IMAGE_MARK}\n{question}"), ("gpt", answer)],
            images=[self.viewing.tiling(view.image)],
            regions=regions,
            region_images=np.zeros(len(regions), np.int32),
            targets={"grounding_dino": view.targets(np.zeros(n, np.int64))},
            meta=meta,
        )


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    by: str = "name",
    objects: int | None = None,
    clean_names: bool = False,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> CountingSource:
    """Opens a COCO file with categories (also LVIS, Objects365, CA-44).

    Categories of one name are one class. A class of which a picture has a crowd, or which LVIS did not mark
    to the end there (`not_exhaustive_category_ids`), has no known number and is never asked for.

    Args:
      annotations: the file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      by: how a class is asked for: its "name", an "example" (the box of one of its objects), or "mixed".
      objects: most objects of a class in one training example, the task's capacity; None: any number.
      clean_names: as in `datasets.detection` (LVIS).
      image_mode: as in `data_pipelines.images.Tiling`; but with examples every mode other than "anyres"
        stretches the picture, so that the region fits.
      max_tiles: for "anyres".
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "counting", "counting_alike" and "counted").
      seed: of view, class, example and wording, together with the index.
      test: the whole picture, a record for every class in it, the first example and wording; "mixed" asks by
        name.

    Raises:
      DataError: a missing or malformed file, or an object of an unknown category.
    """
    if by not in WAYS:
        raise ValueError(f"unknown way {by!r} to ask, there are {', '.join(WAYS)}")
    coco = read_coco(annotations)
    records: list[tuple[int, tuple[str, ...]]] = []
    for image_id in coco.images:
        found = _objects(coco, image_id, clean_names)
        if test:
            records += [(image_id, (name,)) for name in found]
        else:
            fitting = [name for name, group in found.items() if objects is None or len(group) <= objects]
            records += [(image_id, tuple(fitting))] if fitting else []
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
        regions=by != "name",
    )
    return CountingSource(
        coco,
        records,
        pathlib.Path(image_root),
        viewing,
        by,
        clean_names,
        load_templates("counting", templates),
        load_templates("counting_alike", templates),
        load_templates("counted", templates),
    )


def _objects(coco: CocoFile, image_id: int, clean: bool) -> dict[str, list[dict]]:
    """Name of a class -> its objects in a picture, for classes of known number."""
    unknown = {_name(coco, a.get("category_id"), a, clean) for a in coco.crowds.get(image_id, ())}
    for category in coco.images[image_id].get("not_exhaustive_category_ids", ()):
        unknown.add(_name(coco, category, {}, clean))
    found: dict[str, list[dict]] = {}
    for annotation in coco.annotations[image_id]:
        name = _name(coco, annotation.get("category_id"), annotation, clean)
        if name not in unknown:
            found.setdefault(name, []).append(annotation)
    return found


def _name(coco: CocoFile, category: int | None, annotation: dict, clean: bool) -> str:
    if category not in coco.categories:
        raise DataError(
            f"{category} is none of the file's categories",
            file=coco.file,
            record=f"annotation {annotation.get('id', '?')}",
            field="category_id",
            remedy="add the category or drop the annotation",
        )
    given = coco.categories[category]
    return clean_name(given) if clean else given.strip().lower()


def _corners(annotation: dict) -> tuple[float, float, float, float]:
    x, y, w, h = annotation["bbox"]
    return x, y, x + w, y + h
