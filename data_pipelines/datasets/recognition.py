# SPDX-License-Identifier: Apache-2.0
"""What is in a region: COCO, LVIS and V3Det files turned into one question for each of some objects."""

import dataclasses
import pathlib

import numpy as np

from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, region_text
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.templates import as_sentence, clean_name, load_templates, pick

_SMALLEST = 2  # pixels in the tile that a box has to exceed (official REGION pipeline)


@dataclasses.dataclass(frozen=True)
class RecognitionSource:
    """Random access to pictures with objects; every object asked about is a round and a region."""

    coco: CocoFile
    image_ids: list[int]
    image_root: pathlib.Path
    tiling: Tiling
    templates: tuple[str, ...]
    note: str
    form: str
    max_regions: int
    clean_names: bool
    seed: int
    test: bool

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        """Picture `index`.

        Raises:
          DataError: a missing picture, one of another size than the file says, an unknown category, or no
            object that is large enough.
        """
        image_id = self.image_ids[index]
        rng = None if self.test else generator(self.seed, index)
        image = load_image(self.image_root / self.coco.images[image_id]["file_name"])
        self.coco.check_size(image_id, image)
        objects = [a for a in self.coco.annotations[image_id] if self._is_large(a)]
        if not objects:
            raise DataError(
                f"no object exceeds {_SMALLEST} pixels in a tile of {self.tiling.size}",
                file=self.coco.file,
                record=f"image {image_id}",
                remedy="skip the picture or use larger tiles",
            )
        if rng is not None:
            objects = [objects[i] for i in rng.permutation(len(objects))]
        objects = objects[: self.max_regions]
        turns, regions = [], []
        for number, annotation in enumerate(objects, 1):
            form = self.form
            if form == "mixed":
                form = "box" if rng is None or rng.random() < 0.5 else "mask"
            regions.append(self.coco.region(annotation, form, self.tiling.size))
            question = pick(self.templates, rng).replace("{region}", region_text(number))
            question = f"{question} ({self.note})" if self.note else question
            turns.append(("human", f"{IMAGE_MARK}\n{question}" if number == 1 else question))
            turns.append(("gpt", as_sentence(self._name(annotation))))
        return Example(
            source="recognition",
            file=self.coco.file,
            record=f"image {image_id}",
            turns=turns,
            images=[self.tiling(image)],
            regions=np.stack(regions),
            region_images=np.zeros(len(regions), np.int32),
            meta={"answers": [self._name(a) for a in objects], "image_id": image_id},
        )

    def _is_large(self, annotation: dict) -> bool:
        height, width = self.coco.size(annotation["image_id"])
        _, _, w, h = annotation["bbox"]
        return min(w / width, h / height) * self.tiling.size > _SMALLEST

    def _name(self, annotation: dict) -> str:
        category = annotation.get("category_id")
        if category not in self.coco.categories:
            raise DataError(
                f"{category} is none of the file's categories",
                file=self.coco.file,
                record=f"annotation {annotation.get('id', '?')}",
                field="category_id",
                remedy="add the category or drop the annotation",
            )
        name = self.coco.categories[category]
        return clean_name(name) if self.clean_names else name


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    form: str = "mixed",
    max_regions: int = 15,
    note: str = "",
    clean_names: bool = False,
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> RecognitionSource:
    """Opens a COCO file with categories.

    Args:
      annotations: the file; LVIS and V3Det use the same layout.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      image_mode: "anyres"; every other mode stretches the picture, so that the regions fit.
      max_tiles: for "anyres".
      form: how regions are marked: "box" (V3Det has no masks), "mask" or "mixed".
      max_regions: objects of one conversation.
      note: appended to each question, to tell the label space apart ("one of the 80 COCO classes").
      clean_names: see `templates.clean_name` (LVIS).
      templates: JSON file with questions of one's own (key "recognition").
      seed: of objects, questions and forms, together with the index.
      test: the objects in the file's order, the first question; "mixed" gives boxes.

    Raises:
      DataError: a missing or malformed file.
    """
    if form not in ("box", "mask", "mixed"):
        raise ValueError(f"unknown form {form!r}, there are box, mask, mixed")
    coco = read_coco(annotations)
    image_ids = [image_id for image_id, group in coco.annotations.items() if group]
    wordings = load_templates("recognition", templates)
    tiling = Tiling(image_mode, tile_size, max_tiles).for_regions
    root = pathlib.Path(image_root)
    return RecognitionSource(
        coco, image_ids, root, tiling, wordings, note, form, max_regions, clean_names, seed, test
    )
