# SPDX-License-Identifier: Apache-2.0
"""The synthetic dataset: scenes from a seed, as examples of every task. It needs no file."""

import dataclasses
from collections.abc import Collection

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling
from data_pipelines.masks import resize_masks
from data_pipelines.synthetic import generation, language, perception
from data_pipelines.synthetic.language import Built, Settings
from data_pipelines.synthetic.questions import QUESTIONS
from data_pipelines.synthetic.render import Rendering, render
from data_pipelines.synthetic.scene import LEVELS, Scene, is_novel, sample
from vllm2_jax.tokens import QueryCounts

TASKS = {
    "chat": language.chat,
    "caption": language.describe,
    "region": language.region,
    "text": language.text,
    "det": perception.detect,
    "grd": perception.refer,
    "seg": perception.segment,
    "pose": perception.pose,
    "t2i": generation.generate,
    "edit": generation.edit,
}
# The split is part of the seed, so that no scene of one split is drawn again in another.
SPLITS = {"train": 0, "heldout": 1}
_TRIES = 50  # scenes drawn for one record until one fits its task


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Random access to the records of one task; record `i` depends on (seed, split, task, i) only."""

    task: str
    level: str
    length: int
    tiling: Tiling
    seed: int
    split: str
    settings: Settings
    novel: bool = False

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: no scene of this level suits the task.
        """
        scene, view, built = self.draw(index)
        meta = {"answers": [text for who, text in built.turns if who == "gpt"], **built.meta}
        shown, *_ = meta.pop("scenes", (scene,))  # an edit may start from another scene than the one drawn
        view = view if shown is scene else render(shown, self.tiling.size)
        turns = built.turns
        if built.picture:
            turns = [(turns[0][0], f"<image>\n{turns[0][1]}"), *turns[1:]]
        regions = no_regions(self.tiling.size)
        if built.regions is not None:
            regions = resize_masks(built.regions.astype(np.uint8), self.tiling.size)
        return Example(
            source="synthetic",
            file=f"synthetic/{self.split}/{self.task}/seed{self.seed}",
            record=str(index),
            turns=turns,
            images=[self.tiling(view.image)] if built.picture else [],
            regions=regions,
            region_images=np.zeros(len(regions), np.int32),
            targets=built.targets,
            meta=meta,
        )

    def draw(self, index: int) -> tuple[Scene, Rendering, Built]:
        """The scene of a record, its rendering at the tile's size, and what its task makes of it."""
        stream = [self.seed, SPLITS[self.split], list(TASKS).index(self.task), index]
        rng = np.random.default_rng(stream)
        for _ in range(_TRIES):
            scene = sample(rng, LEVELS[self.level])
            if self.novel and any(is_novel(thing) != (self.split == "heldout") for thing in scene.things):
                continue
            view = render(scene, self.tiling.size)
            built = TASKS[self.task](scene, view, rng, self.settings)
            if built is not None and not self._shows_what_is_held_out(built):
                return scene, view, built
        raise DataError(
            f"no scene of level {self.level!r} suits the task {self.task!r}",
            file="synthetic",
            record=index,
            field="level",
            remedy=f"choose another of the levels {', '.join(LEVELS)} or other questions",
        )

    def _shows_what_is_held_out(self, built: Built) -> bool:
        """Whether an edit of training leads to a thing that training never shows."""
        things = (thing for scene in built.meta.get("scenes", ()) for thing in scene.things)
        return self.novel and self.split == "train" and any(map(is_novel, things))


def load(
    *,
    task: str,
    tile_size: int,
    image_mode: Mode = "anyres",
    max_tiles: int = 1,
    level: str = "easy",
    length: int = 1_000_000,
    seed: int = 0,
    split: str = "train",
    questions: tuple[str, ...] = tuple(QUESTIONS),
    turns: int = 1,
    decoder_size: int = 224,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    form: str = "mixed",
    names: int = 17,
    novel: bool = False,
) -> SyntheticSource:
    """Makes the source of one task.

    Args:
      task: a key of `TASKS`.
      tile_size: side of a tile of the vision tower in pixels, and the shorter side of a rendered scene.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`; by default one tile, stretched. For "region"
        every mode but "anyres" stretches, so that the regions fit.
      level: a key of `scene.LEVELS`; "pose" needs one with people.
      length: records of an epoch.
      seed: of everything.
      split: "train" or "heldout".
      questions: kinds of question for "chat", keys of `questions.QUESTIONS`.
      turns: most questions or regions of one conversation.
      decoder_size: shorter side of the decoder's picture, in pixels.
      counts: queries of a link; must be those of the model.
      form: "box", "mask" or "mixed": how regions are marked.
      names: most classes or keypoints that one question asks for.
      novel: things that are held out have pairs of kind and colour that are never in training. For levels
        with one thing; more of them are all novel too rarely.

    Raises:
      DataError: an unknown task, level, split, question or form.
    """
    checks: list[tuple[str, str, Collection[str]]] = [
        ("task", task, TASKS),
        ("level", level, LEVELS),
        ("split", split, SPLITS),
        ("form", form, ("box", "mask", "mixed")),
        *(("questions", kind, QUESTIONS) for kind in questions),
    ]
    for field, value, known in checks:
        if value not in known:
            raise DataError(
                f"unknown value {value!r}",
                file="synthetic",
                field=field,
                remedy=f"use one of {', '.join(known)}",
            )
    settings = Settings(tuple(questions), turns, decoder_size, counts, form, names)
    tiling = Tiling(image_mode, tile_size, max_tiles)
    tiling = tiling.for_regions if task == "region" else tiling
    return SyntheticSource(task, level, length, tiling, seed, split, settings, novel)
