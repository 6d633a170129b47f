# SPDX-License-Identifier: Apache-2.0
"""Examples without a decoder: chat, captions, descriptions of regions, text alone."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.conversation import region_text
from data_pipelines.synthetic.prompts import CAPTION, REGION, fill
from data_pipelines.synthetic.questions import ask
from data_pipelines.synthetic.render import Rendering
from data_pipelines.synthetic.scene import Scene
from data_pipelines.synthetic.words import caption, name, sentence, with_article
from vllm2_jax.tokens import QueryCounts

Turns = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a builder needs beside the scene.

    Attributes:
      questions: kinds of question that chat may ask (keys of `questions.QUESTIONS`).
      turns: most questions, or regions, that one conversation asks about.
      decoder_size: shorter side of the picture a decoder sees, in pixels.
      counts: queries of a link, as in the model.
      form: "box", "mask" or "mixed": how a region is marked.
      names: most classes, or keypoints, that one question asks for; classes that are there count too.
    """

    questions: tuple[str, ...]
    turns: int
    decoder_size: int
    counts: QueryCounts
    form: str = "mixed"
    names: int = 17


@dataclasses.dataclass(frozen=True)
class Built:
    """What a builder makes of a scene.

    Attributes:
      turns: ("human" | "gpt", text), without the `<image>` in front.
      regions: boolean masks [n, h, w] in the frame of the rendering, or None.
      targets: decoder name -> numpy arrays.
      meta: for evaluation.
      picture: whether the conversation is about the picture.
    """

    turns: Turns
    regions: np.ndarray | None = None
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    picture: bool = True


def chat(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """One to `settings.turns` questions with short answers."""
    asked = ask(scene, rng, int(rng.integers(1, settings.turns + 1)), settings.questions)
    if not asked:
        return None
    turns = [turn for _, question, answer in asked for turn in (("human", question), ("gpt", answer))]
    return Built(turns, meta={"kinds": [kind for kind, _, _ in asked]})


def describe(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """The caption of the scene, in reading order."""
    return Built([("human", fill(CAPTION, rng)), ("gpt", caption(scene))])


def region(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """What up to `settings.turns` marked regions show, one a turn."""
    visible = np.flatnonzero(view.masks.sum((1, 2)) >= 12)
    chosen = rng.permutation(visible)[: int(rng.integers(1, settings.turns + 1))]
    if not len(chosen):
        return None
    turns, masks = [], []
    for number, thing in enumerate(chosen, start=1):
        form = settings.form if settings.form != "mixed" else ("box", "mask")[rng.integers(2)]
        masks.append(
            view.masks[thing] if form == "mask" else _box_mask(view.boxes[thing], view.image.shape[:2])
        )
        turns.append(("human", fill(REGION, rng, region_text(number))))
        turns.append(("gpt", sentence(with_article(name(scene.things[thing], size=True)))))
    return Built(turns, regions=np.stack(masks))


def text(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """Questions about a scene that is told in words instead of shown: language only, so it can be packed."""
    asked = ask(scene, rng, int(rng.integers(1, settings.turns + 1)), ("colour", "shape", "size", "exists"))
    if not asked:
        return None
    (_, question, answer), *rest = asked
    turns = [("human", f"{caption(scene)} {question}"), ("gpt", answer)]
    for _, question, answer in rest:
        turns += [("human", question), ("gpt", answer)]
    return Built(turns, picture=False)


def _box_mask(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A filled box (ends exclusive) as a boolean mask of this shape."""
    picture = Image.new("1", shape[::-1])
    x0, y0, x1, y1 = box.tolist()
    ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)
    return np.asarray(picture)
