# SPDX-License-Identifier: Apache-2.0
"""Descriptions of single regions: Visual Genome and RefCOCO in COCO layout, `caption` in each annotation."""

import dataclasses
import pathlib

import numpy as np

from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, region_text
from data_pipelines.draws import generator
from data_pipelines.example import Example
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.records import need
from data_pipelines.templates import as_sentence, load_templates, pick


@dataclasses.dataclass(frozen=True)
class RegionCaptionSource:
    """Random access to annotations: one region, one question, its caption as the answer."""

    coco: CocoFile
    annotations: list[dict]
    image_root: pathlib.Path
    tiling: Tiling
    templates: tuple[str, ...]
    form: str
    seed: int
    test: bool

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Example:
        """Annotation `index`.

        Raises:
          DataError: a missing picture or mask, or a picture of another size than the file says.
        """
        annotation = self.annotations[index]
        rng = None if self.test else generator(self.seed, index)
        form = self.form
        if form == "mixed":
            form = "box" if rng is None or rng.random() < 0.5 else "mask"
        image_id = annotation["image_id"]
        image = load_image(self.image_root / self.coco.images[image_id]["file_name"])
        self.coco.check_size(image_id, image)
        region = self.coco.region(annotation, form, self.tiling.size)
        # The official evaluation names its only region without a number.
        name = region_text() if self.test else region_text(1)
        question = pick(self.templates, rng).replace("{region}", name)
        return Example(
            source="region_captions",
            file=self.coco.file,
            record=f"annotation {annotation.get('id', index)}",
            turns=[("human", f"{IMAGE_MARK}\n{question}"), ("gpt", as_sentence(annotation["caption"]))],
            images=[self.tiling(image)],
            regions=region[None],
            region_images=np.zeros(1, np.int32),
            meta={"answers": [annotation["caption"]], "image_id": image_id},
        )


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    form: str = "box",
    min_words: int = 1,
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> RegionCaptionSource:
    """Opens a COCO file whose annotations have a `caption`.

    Args:
      annotations: the file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      image_mode: "anyres"; every other mode stretches the picture, so that the region fits.
      max_tiles: for "anyres".
      form: how the region is marked: "box" (Visual Genome), "mask" or "mixed" (RefCOCO).
      min_words: drops shorter captions; the official RefCOCO training uses 3.
      templates: JSON file with questions of one's own (key "region_caption").
      seed: of question and form, together with the index.
      test: first question, unnumbered region; "mixed" gives boxes.

    Raises:
      DataError: a missing or malformed file, or an annotation without caption.
    """
    if form not in ("box", "mask", "mixed"):
        raise ValueError(f"unknown form {form!r}, there are box, mask, mixed")
    coco = read_coco(annotations)
    chosen = []
    for annotation in (a for group in coco.annotations.values() for a in group):
        where = f"annotation {annotation.get('id', '?')}"
        caption = need(annotation, "caption", str, file=annotations, index=where)
        if len(caption.split()) >= min_words:
            chosen.append(annotation)
    wordings = load_templates("region_caption", templates)
    tiling = Tiling(image_mode, tile_size, max_tiles).for_regions
    return RegionCaptionSource(coco, chosen, pathlib.Path(image_root), tiling, wordings, form, seed, test)
