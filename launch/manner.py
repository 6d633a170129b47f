# SPDX-License-Identifier: Apache-2.0
"""How a run was asked in training, so that the command line asks alike.

Decoders only do well with pictures of the size, and links between words of the kind, that they know: a run
that learnt from files is asked in the first wording of its reader, with pictures as its tests show them; one
that learnt from synthetic scenes in theirs, with pictures that fill the decoder's square.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines import DATASETS
from data_pipelines.augment import fit
from data_pipelines.datasets.text_to_image import clean_caption
from data_pipelines.scene_views import SceneView, fit_scene
from data_pipelines.synthetic.prompts import ANSWERS, QUESTIONS
from data_pipelines.templates import clean_phrase, load_templates
from data_pipelines.viewing import annotate
from launch.build import Config, fill_root

Picture = UInt8[np.ndarray, "H W 3"]


def instruction(text: str) -> str:
    """A sentence of its own, as the reader of edits asks for half of them in training and all in tests."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The reader of a task's files.

    Attributes:
      loader: key of `DATASETS`.
      wordings: keys of `TEMPLATES` for question and answer; "" where the words are the question.
      synthetic: key of `synthetic.prompts`.
      asked: what becomes of the words in the question.
      named: what becomes of a name in front of its link; None where the answer has none.
    """

    loader: str
    wordings: tuple[str, str]
    synthetic: str
    asked: Callable[[str], str] = str
    named: Callable[[str], str] | None = str


_DETECTION = _Reader("detection", ("detection", "detected"), "det", str.lower, str.lower)
_READERS = {
    "det": _DETECTION,
    "ins": _DETECTION,
    "grd": _Reader("referring", ("referring", "referred"), "grd", clean_phrase, None),
    "seg": _Reader("semantic", ("segmentation", "segmented"), "seg", str.lower),
    "pose": _Reader("keypoints", ("pose", "posed"), "pose"),
    "gen": _Reader("text_to_image", ("paint", "painted"), "t2i", clean_caption, None),
    "edit": _Reader("editing", ("", "edited"), "edit", instruction, None),
}
_SLOTS = ("{classes}", "{keypoints}")  # of question and answer, in this order


@dataclasses.dataclass(frozen=True)
class Manner:
    """How one task of a run is asked.

    Attributes:
      question, answer: wordings with the slots {classes} and {keypoints}; {classes} also stands for a phrase,
        a prompt or a link alone.
      asked: what becomes of the words in the question.
      named: what becomes of a name in front of its link; None where the answer has none.
      size: that the decoder's picture gets, as `fitted` takes it; None: it fills the decoder's square.
      scenes: whether pictures are fitted as those of scenes whose every pixel has a class.
      max_tiles: tiles that a picture was cut into at most.
    """

    question: str
    answer: str
    asked: Callable[[str], str]
    named: Callable[[str], str] | None
    size: int | None
    scenes: bool
    max_tiles: int

    def turns(self, words: Sequence[str], links: Sequence[str]) -> tuple[str, str]:
        """Question and answer.

        Args:
          words: the classes, phrase or prompt, and the keypoints if there are any; joined by commas.
          links: of each of these, what stands in the answer.
        """
        asked = (self.asked(words[0]), *words[1:])
        return _fill(self.question, asked), _fill(self.answer, links)

    def name(self, words: str) -> str:
        """What stands in front of a link."""
        return self.named(words) if self.named else ""

    def fitted(self, picture: Picture) -> Picture:
        """What the decoder gets of a picture, which may have to be shrunk further to fit its square."""
        if self.size is None:
            return picture
        if self.scenes:
            return fit_scene(SceneView(picture, np.zeros(picture.shape[:2], np.int64)), self.size).image
        return fit(annotate(picture, boxes=np.zeros((0, 4), np.float32)), self.size).image


def manner_of(config: Config, task: str, decoder: str) -> Manner:
    """How a run asked its decoder for a task; for one that it did not train, how the task's reader asks.

    Args:
      config: of the run.
      task: of the command line.
      decoder: that answers it.
    """
    reader = _READERS[task]
    datasets = [
        (options.get("loader", name), options)
        for entry in config.data.mixture.to_dict().values()
        if entry.get("decoder") == decoder
        for name, options in entry["datasets"].items()
    ]
    files = [(loader, options) for loader, options in datasets if loader != "synthetic"]
    if not files:
        question, answer = (texts[reader.synthetic][0].format(*_SLOTS) for texts in (QUESTIONS, ANSWERS))
        # Where links learnt to spell a name, it stands in front of every one of them.
        named = str if reader.named or config.named_links else None
        return Manner(question, answer, str, named, None, False, 1)
    exact = [(loader, options) for loader, options in files if loader == reader.loader]
    loader, options = (exact or files)[0]
    own = fill_root(options.get("templates"), config.data.root) if exact else None
    wordings = [load_templates(key, own)[0] if key else "{caption}" for key in reader.wordings]
    question, answer = (_one_slot(text) for text in wordings)

    def option(name: str, otherwise: Any) -> Any:
        known = inspect.signature(DATASETS[loader]).parameters
        return options.get(name, known[name].default if name in known else otherwise)

    size, most = option("decoder_size", None), option("max_tiles", 1)
    return Manner(question, answer, reader.asked, reader.named, size, loader == "semantic", most)


def _one_slot(wording: str) -> str:
    """Readers have a slot for each kind of words; here all of them are {classes}, but for keypoints."""
    for slot in ("{link}", "{caption}", "{expression}"):
        wording = wording.replace(slot, "{classes}")
    return wording


def _fill(wording: str, words: Sequence[str]) -> str:
    for slot, text in zip(_SLOTS, words, strict=False):
        wording = wording.replace(slot, text)
    return wording
