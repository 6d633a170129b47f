# SPDX-License-Identifier: Apache-2.0
"""Examples for the decoders that paint: pictures from captions, and edits.

Targets lie under the decoder's name: `image`, the uint8 [h, w, 3] picture to make, for edits also `input`,
the picture to start from, and `caption`, the text that asks for it.
"""

import dataclasses

import numpy as np

from data_pipelines.conversation import link
from data_pipelines.synthetic.language import Built, Settings
from data_pipelines.synthetic.prompts import ANSWERS, QUESTIONS, fill
from data_pipelines.synthetic.render import Rendering, render
from data_pipelines.synthetic.scene import COLOURS, SHAPES, Scene, Thing
from data_pipelines.synthetic.words import caption, expressions, name, place, sentence, with_article


def generate(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """A picture from its caption. The conversation itself has no picture."""
    words = caption(scene)
    image = render(scene, settings.decoder_size).image
    turns = _turns("t2i", "gen", words, rng, settings)
    targets = {"stable_diffusion": {"image": image, "caption": words}}
    things = [(thing.kind, thing.colour) for thing in scene.things]
    return Built(turns, targets=targets, meta={"things": things, "caption": words}, picture=False)


def edit(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """A change to one thing: its colour, its shape, its size, or that it is there at all."""
    number = int(rng.integers(len(scene.things)))
    phrases, thing = expressions(scene, number), scene.things[number]
    if not phrases:
        return None
    phrase = phrases[rng.integers(len(phrases))]
    change = (_recolour, _reshape, _resize, _remove)[rng.integers(4)]
    instruction, changed = change(thing, phrase, rng)
    if changed is None and len(scene.things) == 1:
        return None  # nothing would be left to see
    things = [t for i, t in enumerate(scene.things) if i != number]
    if changed is not None:
        if changed.size != thing.size and not _fits(changed, things, scene.aspect):
            return None
        things.insert(number, changed)
    after = dataclasses.replace(scene, things=tuple(things))
    if instruction.startswith("Remove") and rng.random() < 0.5:  # half of the removals run backwards
        where = place(thing, scene)
        if where is None:
            return None
        instruction = f"Add {with_article(name(thing, size=True))} at the {where}."
        scene, after = after, scene
    before, target = (render(s, settings.decoder_size).image for s in (scene, after))
    turns = _turns("edit", "edit", instruction, rng, settings)
    targets = {"input": before, "image": target, "caption": instruction}
    return Built(turns, targets={"instruct_pix2pix": targets}, meta={"scenes": (scene, after)})


def _turns(
    task: str, token: str, words: str, rng: np.random.Generator, settings: Settings
) -> list[tuple[str, str]]:
    # The words again in front of the link: its name, as classes are those of links that look for things.
    answer = fill(ANSWERS[task], rng, link(words.removesuffix("."), token, settings.counts))
    return [("human", fill(QUESTIONS[task], rng, words)), ("gpt", answer)]


def _recolour(thing: Thing, phrase: str, rng: np.random.Generator) -> tuple[str, Thing]:
    colour = str(rng.choice([c for c in COLOURS if c != thing.colour]))
    whose = f"the shirt of the {phrase}" if thing.kind == "person" else f"the {phrase}"
    return f"Make {whose} {colour}.", dataclasses.replace(thing, colour=colour)


def _reshape(thing: Thing, phrase: str, rng: np.random.Generator) -> tuple[str, Thing]:
    kind = str(rng.choice([s for s in SHAPES if s != thing.kind]))
    new = dataclasses.replace(thing, kind=kind, word="", joints=())
    if thing.kind == "person":  # a person and a shape of one size differ in extent; keep what fitted before
        new = dataclasses.replace(new, size="small")
    return f"Turn the {phrase} into {with_article(f'{new.size} {new.colour} {kind}')}.", new


def _resize(thing: Thing, phrase: str, rng: np.random.Generator) -> tuple[str, Thing]:
    size = "small" if thing.size == "large" else "large"
    return f"Make the {phrase} {size}.", dataclasses.replace(thing, size=size)


def _remove(thing: Thing, phrase: str, rng: np.random.Generator) -> tuple[str, None]:
    return sentence(f"Remove the {phrase}"), None


def _fits(thing: Thing, others: list[Thing], aspect: float) -> bool:
    """Whether a thing lies inside the picture and touches no other."""
    inside = min(thing.x, aspect - thing.x, thing.y, 1 - thing.y) >= thing.radius
    near = [np.hypot(thing.x - o.x, thing.y - o.y) < thing.radius + o.radius for o in others]
    return inside and not any(near)
