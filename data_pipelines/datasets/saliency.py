# SPDX-License-Identifier: Apache-2.0
"""The object that stands out, or that hides: folders of pictures and of their masks (DUTS, COD10K, CAMO)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.augment import LONGEST
from data_pipelines.conversation import IMAGE_MARK, link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.mask_files import Pair, pair_files, read_mask
from data_pipelines.templates import load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts


@dataclasses.dataclass(frozen=True)
class SaliencySource:
    """Random access to pictures with one mask, all of it one object.

    Attributes:
      pairs: pictures and masks.
      names: what the object is called; a random one in training, the first in tests.
      viewing: of tower and decoder.
      questions, answers: wordings.
    """

    pairs: list[Pair]
    names: tuple[str, ...]
    viewing: Viewing
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Record `index`. In tests a mask may be empty: then there is no object to find.

        Raises:
          DataError: a missing or damaged file, or a mask of another size or without any pixel.
        """
        pair, rng = self.pairs[index], self.viewing.rng(index)
        image = read_picture(pair.picture, record=pair.record, field="image_root")
        height, width = image.shape[:2]
        mask = read_mask(pair.mask, (height, width), record=pair.record)
        if not mask.any() and rng is not None:
            raise DataError(
                "the mask is empty", file=pair.mask, record=pair.record, remedy="drop the picture"
            )
        masks = mask[None] if mask.any() else np.zeros((0, height, width), bool)
        view = self.viewing.view(annotate(image, masks=masks), rng)
        name = pick(self.names, rng)
        meta: dict[str, Any] = {"classes": [name]}
        if self.viewing.test:
            meta["truth"] = truth((height, width), [name] * len(masks), masks=masks)
        question = pick(self.questions, rng).replace("{classes}", name)
        answer = pick(self.answers, rng).replace("{link}", link(name, "det", self.viewing.counts))
        return Example(
            source="saliency",
            file=str(pair.mask),
            record=pair.record,
            turns=[("human", f"{IMAGE_MARK}\n{question}"), ("gpt", answer)],
            images=[self.viewing.tiles(image, view)],
            targets={"grounding_dino": view.targets(np.zeros(len(view.kept), np.int64))},
            meta=meta,
        )


def load(
    *,
    image_root: str,
    mask_root: str,
    tile_size: int,
    files: str = "*",
    names: Sequence[str] = ("salient object", "foreground object"),
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> SaliencySource:
    """Opens two folders.

    Args:
      image_root: folder of the pictures.
      mask_root: folder of the masks, PNGs with the names of their pictures.
      tile_size: side of a tile in pixels.
      files: pattern of the pictures' file names, where a folder has others too ("COD10K-CAM-*").
      names: what the object is called ("camouflaged object" for objects that hide).
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture in pixels.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "saliency" and "cut_out").
      seed: of view, name and wording, together with the index.
      test: the whole picture, the first name and wording.

    Raises:
      DataError: a missing folder, or one without pictures.
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
    return SaliencySource(
        pair_files(image_root, mask_root, files),
        tuple(names),
        viewing,
        load_templates("saliency", templates),
        load_templates("cut_out", templates),
    )
