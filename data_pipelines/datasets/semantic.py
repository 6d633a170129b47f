# SPDX-License-Identifier: Apache-2.0
"""The class of every pixel: folders of pictures and of maps of classes, as of ADE20K."""

import dataclasses
from typing import Any

import numpy as np

from data_pipelines.class_lists import choose_classes, read_names
from data_pipelines.conversation import IMAGE_MARK, link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.mask_files import Pair, pair_files, read_class_map
from data_pipelines.scene_views import SIDE, UNLABELLED, SceneView, augment_scene, fit_scene
from data_pipelines.templates import load_templates, pick
from data_pipelines.viewing import Viewing, annotate, make_viewing, read_picture, truth
from vllm2_jax.tokens import QueryCounts


@dataclasses.dataclass(frozen=True)
class SemanticSource:
    """Random access to pictures with a class for every pixel; the object of a class is all of its pixels.

    Attributes:
      pairs: pictures and maps.
      names: of the classes, in the order of their numbers.
      first: the number that the maps give to the first class.
      most_classes: that a question of training asks for; None: all of them.
      viewing: of tower and decoder.
      questions, answers: wordings.
    """

    pairs: list[Pair]
    names: tuple[str, ...]
    first: int
    most_classes: int | None
    viewing: Viewing
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Record `index`: half of the time all classes, else those of the view and some that it lacks.

        Raises:
          DataError: a missing or damaged file, a map of another size, one with numbers that no class has, or
            one without any class.
        """
        pair, rng = self.pairs[index], self.viewing.rng(index)
        image = read_picture(pair.picture, record=pair.record, field="image_root")
        classes = self._classes(pair, image.shape[:2])
        whole = SceneView(image, classes)
        side = self.viewing.size
        view = fit_scene(whole, side) if rng is None else augment_scene(whole, rng, side)
        present = [int(number) for number in np.unique(view.classes) if number != UNLABELLED]
        asked = choose_classes(len(self.names), present, rng, most=self.most_classes)
        present = [number for number in present if number in asked]
        masks = view.classes == np.array(present, np.int64)[:, None, None]
        seen = dataclasses.replace(annotate(view.image, masks=masks), flipped=view.flipped)
        names = [self.names[number] for number in asked]
        meta: dict[str, Any] = {"classes": names}
        if self.viewing.test:
            found = [int(number) for number in np.unique(classes) if number != UNLABELLED]
            meta["truth"] = truth(
                image.shape[:2],
                [self.names[number] for number in found],
                masks=classes == np.array(found)[:, None, None],
            )
            meta["truth"] |= {"classes": classes, "names": list(self.names)}
        # The question spells names in lower case, the answer as the dataset does.
        question = pick(self.questions, rng).replace("{classes}", ", ".join(names).lower())
        links = ", ".join(link(name, "seg", self.viewing.counts) for name in names)
        return Example(
            source="semantic",
            file=str(pair.mask),
            record=pair.record,
            turns=[
                ("human", f"{IMAGE_MARK}\n{question}"),
                ("gpt", pick(self.answers, rng).replace("{link}", links)),
            ],
            images=[self.viewing.tiles(image, seen)],
            targets={"grounding_dino": seen.targets(np.array([asked.index(n) for n in present], np.int64))},
            meta=meta,
        )

    def _classes(self, pair: Pair, size: tuple[int, int]) -> np.ndarray:
        """Places in `names`, UNLABELLED where there is no class."""
        values = read_class_map(pair.mask, size, record=pair.record)
        known = (values >= self.first) & (values != UNLABELLED)
        numbers = values[known] - self.first
        if not len(numbers) or numbers.max() >= len(self.names):
            raise DataError(
                f"the number {numbers.max() + self.first} is none of the {len(self.names)} classes"
                if len(numbers)
                else "no pixel has a class",
                file=pair.mask,
                record=pair.record,
                remedy="give all names of the dataset and the number of its first (`first`)",
            )
        return np.where(known, values - self.first, UNLABELLED)


def load(
    *,
    image_root: str,
    mask_root: str,
    names: str,
    tile_size: int,
    first: int = 1,
    most_classes: int | None = None,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = SIDE,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> SemanticSource:
    """Opens two folders and a list of names.

    Args:
      image_root: folder of the pictures.
      mask_root: folder of the maps, PNGs with the names of their pictures.
      names: file with the names of all classes in order: a JSON list, or one on each line.
      tile_size: side of a tile in pixels.
      first: the number of the first class in the maps; smaller ones, and 255, mean that there is none.
      most_classes: that a question of training asks for, where a row has no room for all; what is in the
        picture comes first. None: all of them.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: side of the square that the decoder sees in training, shorter side of its picture in tests
        (the longer one is 4 times as long at most).
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "segmentation" and "segmented").
      seed: of view, classes and wording, together with the index.
      test: the whole picture, all classes in order, the first wording.

    Raises:
      DataError: a missing folder or file, no maps, a list without names, or one of more classes than a map
        has numbers for.
    """
    classes = read_names(names)
    if first + len(classes) > UNLABELLED:
        raise DataError(
            f"{len(classes)} classes from number {first} on, where maps have numbers up to {UNLABELLED - 1}",
            file=names,
            remedy="leave classes out; 255 means that there is none",
        )
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        counts=counts,
        seed=seed,
        test=test,
    )
    return SemanticSource(
        pair_files(image_root, mask_root),
        classes,
        first,
        most_classes,
        viewing,
        load_templates("segmentation", templates),
        load_templates("segmented", templates),
    )
