# SPDX-License-Identifier: Apache-2.0
"""Things and scenes in words: descriptions, places, captions, expressions that fit one thing only."""

import numpy as np

from data_pipelines.synthetic.scene import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def with_article(noun: str) -> str:
    """`red circle -> a red circle`, `orange ring -> an orange ring`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(kind: str) -> str:
    """`circle -> circles`, `cross -> crosses`, `person -> people`."""
    return {"person": "people", "cross": "crosses"}.get(kind, f"{kind}s")


def sentence(text: str) -> str:
    """First letter large, full stop at the end: the form of every answer, as in the official data."""
    return f"{text[0].upper()}{text[1:]}."


def name(thing: Thing, *, size: bool = False, colour: bool = True) -> str:
    """A thing without an article: `large red circle`, `person in a red shirt`, `red sign that says stop`."""
    prefix = f"{thing.size} " if size else ""
    if thing.kind == "person":
        shirt = f" in {with_article(thing.colour)} shirt" if colour else ""
        return f"{prefix}person{shirt}"
    tint = f"{thing.colour} " if colour else ""
    says = f" that says {thing.word}" if thing.kind == "sign" and size else ""
    return f"{prefix}{tint}{thing.kind}{says}"


def place(thing: Thing, scene: Scene, margin: float = 0.04) -> str | None:
    """`top left` and so on, or None for a centre that is within `margin` of a middle line."""
    dx, dy = thing.x - scene.aspect / 2, thing.y - 0.5
    if min(abs(dx), abs(dy)) < margin:
        return None
    return f"{'bottom' if dy > 0 else 'top'} {'right' if dx > 0 else 'left'}"


def reading_order(scene: Scene) -> list[int]:
    """Numbers of the things: upper half before lower half, each from left to right."""
    return sorted(range(len(scene.things)), key=lambda i: (scene.things[i].y >= 0.5, scene.things[i].x))


def caption(scene: Scene) -> str:
    """Every thing in reading order: `A large red circle, a small blue star and a small green ring.`"""
    parts = [with_article(name(scene.things[i], size=True)) for i in reading_order(scene)]
    *most, last = parts
    return sentence(f"{', '.join(most)} and {last}" if most else last)


def expressions(scene: Scene, number: int) -> list[str]:
    """Phrases (no article) that are true of this thing and of no other one in the scene; [] if there is none.

    Attributes name it where that is enough; else, or as well, the side on which it stands among its likes.
    """
    thing, others = scene.things[number], [t for i, t in enumerate(scene.things) if i != number]
    found = []
    for colour, size in ((False, False), (True, False), (False, True), (True, True)):
        phrase = name(thing, size=size, colour=colour)
        if all(name(other, size=size, colour=colour) != phrase for other in others):
            found.append(phrase)
    likes = [other for other in others if other.kind == thing.kind]
    if likes:
        xs = np.array([like.x for like in likes])
        if np.all(thing.x < xs - 0.1):
            found.append(f"{name(thing, colour=False)} furthest to the left")
        elif np.all(thing.x > xs + 0.1):
            found.append(f"{name(thing, colour=False)} furthest to the right")
    return found
