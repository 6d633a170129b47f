# SPDX-License-Identifier: Apache-2.0
"""The object that an expression refers to: RefCOCO, RefCOCO+, RefCOCOg, ReasonSeg."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from data_pipelines.augment import LONGEST, swap_left_right
from data_pipelines.conversation import IMAGE_MARK, link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.refer_file import Reference, read_references
from data_pipelines.templates import clean_phrase, load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts


@dataclasses.dataclass(frozen=True)
class ReferringSource:
    """Random access to objects with an expression: a random one in training, each of them in tests.

    Attributes:
      references: the objects.
      entries: for each record its object and the number of its expression; None draws one.
      image_root: folder of the pictures.
      viewing: of tower and decoder.
      questions, answers: wordings.
    """

    references: list[Reference]
    entries: list[tuple[int, int | None]]
    image_root: pathlib.Path
    viewing: Viewing
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: a missing picture or one of another size than the file says, an outline that cannot be
            drawn or is empty, an object without outline and box, or an expression without words.
        """
        number, chosen = self.entries[index]
        reference, rng = self.references[number], self.viewing.rng(index)
        image = read_picture(self.image_root / reference.picture, record=reference.record, field="file_name")
        reference.check_size(image)
        reference.check_box()
        height, width = image.shape[:2]
        mask = reference.mask(height, width)
        masks = None if mask is None else mask[None]
        boxes = None if reference.box is None else np.array([reference.box], np.float32)
        view = self.viewing.view(annotate(image, masks=masks, boxes=boxes), rng)
        if rng is not None:
            chosen = int(rng.integers(len(reference.expressions)))
        expression, explanation = self._text(reference, chosen or 0), reference.answer
        if view.flipped:
            expression, explanation = swap_left_right(expression), swap_left_right(explanation)
        question = expression
        if not reference.sentences:
            question = pick(self.questions, rng).replace("{expression}", expression)
        # The answer does not repeat the expression, as in the official data.
        answer = pick(self.answers, rng).replace("{link}", link("", "grd", self.viewing.counts))
        if explanation and not self.viewing.test:
            answer = f"{answer} {explanation}"
        meta: dict[str, Any] = {"classes": [expression], "expression": expression}
        if self.viewing.test:
            # Cut-out polygons are no COCO segmentation; then the mask is the truth.
            outline = None if masks is None or reference.ignored else [reference.segmentation]
            meta["truth"] = truth(
                (height, width), [expression], boxes=boxes, masks=masks, segmentations=outline
            )
        return Example(
            source="referring",
            file=reference.file,
            record=reference.record,
            turns=[("human", f"{IMAGE_MARK}\n{question}"), ("gpt", answer)],
            images=[self.viewing.tiles(image, view)],
            targets={"grounding_dino": view.targets(np.zeros(len(view.kept), np.int64))},
            meta=meta,
        )

    def _text(self, reference: Reference, number: int) -> str:
        """One expression; phrases are cleaned, sentences are not."""
        text = reference.expressions[number]
        cleaned = text if reference.sentences else clean_phrase(text)
        if not cleaned:
            raise DataError(
                f"{text!r} has no words",
                file=reference.file,
                record=reference.record,
                field="expressions",
                remedy="drop the expression",
            )
        return cleaned


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    instances: str | None = None,
    split: str | None = None,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> ReferringSource:
    """Opens a file of expressions, in one of the layouts of `data_pipelines.refer_file`.

    Args:
      annotations: a `.json` or `.jsonl` file, or ReasonSeg's folder.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      instances: COCO file of the objects, for RefCOCO's own references.
      split: keeps the references of this split, in RefCOCO's own references.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "referring" and "referred").
      seed: of view, expression and wording, together with the index.
      test: the whole picture, the first wording, and a record for every expression. (The official evaluation
        draws one expression of each object.)

    Raises:
      DataError: a missing or malformed file, or `instances` or `split` for one of another layout.
    """
    references = read_references(annotations, instances=instances, split=split)
    entries: list[tuple[int, int | None]] = [(number, None) for number in range(len(references))]
    if test:
        entries = [
            (n, i) for n, reference in enumerate(references) for i in range(len(reference.expressions))
        ]
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
    )
    return ReferringSource(
        references,
        entries,
        pathlib.Path(image_root),
        viewing,
        load_templates("referring", templates),
        load_templates("referred", templates),
    )
