# SPDX-License-Identifier: Apache-2.0
"""Questions about a scene with answers that are certain, short and need the picture.

Each function takes a scene and a generator and returns (question, answer), or None where the scene allows no
question of that kind with exactly one right answer. Yes and no are equally likely.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.synthetic.scene import COLOURS, SHAPES, Scene, Thing
from data_pipelines.synthetic.words import NUMBERS, name, place, plural, sentence, with_article

Pair = tuple[str, str]
_MARGIN = 0.15  # two centres closer than this along an axis have no order along it


def colour(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """What colour is the circle? Red."""
    thing = _pick(rng, [t for t in _shapes(scene) if _alone(scene, kind=t.kind)])
    return (f"What colour is the {thing.kind}?", sentence(thing.colour)) if thing else None


def shape(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """What shape is red? A circle."""
    thing = _pick(rng, [t for t in _shapes(scene) if _alone(scene, colour=t.colour)])
    return (f"What shape is {thing.colour}?", sentence(with_article(thing.kind))) if thing else None


def size(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Is the circle small or large? Large."""
    thing = _pick(rng, [t for t in _shapes(scene) if _alone(scene, kind=t.kind)])
    return (f"Is the {thing.kind} small or large?", sentence(thing.size)) if thing else None


def where(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Where is the circle? Top left."""
    thing = _pick(rng, [t for t in scene.things if _alone(scene, kind=t.kind) and place(t, scene)])
    return (f"Where is the {thing.kind}?", sentence(str(place(thing, scene)))) if thing else None


def count(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """How many shapes are there? Two."""
    return "How many shapes are there?", sentence(NUMBERS[len(_shapes(scene))])


def count_kind(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """How many circles are there? Two. Asked where a kind comes more than once, or people are about."""
    kinds = [t.kind for t in scene.things]
    several = sorted({kind for kind in kinds if kinds.count(kind) > 1 or kind == "person"})
    if not several:
        return None
    kind = str(rng.choice(several))
    return f"How many {plural(kind)} are there?", sentence(NUMBERS[kinds.count(kind)])


def exists(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Is there a red circle? Yes. What is not there differs in one attribute from something that is."""
    thing = _pick(rng, _shapes(scene))
    if not thing:
        return None
    if rng.random() < 0.5:
        return f"Is there {with_article(name(thing))}?", "Yes."
    there = {(t.colour, t.kind) for t in scene.things}
    near = [(c, thing.kind) for c in COLOURS] + [(thing.colour, kind) for kind in SHAPES]
    absent = [pair for pair in near if pair not in there]
    wrong = absent[rng.integers(len(absent))]
    return f"Is there {with_article(' '.join(wrong))}?", "No."


def relation(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Is the circle left of the star? Yes."""
    single = [t for t in _shapes(scene) if _alone(scene, kind=t.kind)]
    pairs = [(a, b, axis) for a in single for b in single for axis in "xy" if _apart(a, b, axis)]
    if not pairs:
        return None
    a, b, axis = pairs[rng.integers(len(pairs))]  # each pair is in the list both ways, so yes and no are even
    words = {"x": ("left of", "right of"), "y": ("above", "below")}[axis]
    first = bool(rng.integers(2))
    holds = (getattr(a, axis) < getattr(b, axis)) == first
    return f"Is the {a.kind} {words[0] if first else words[1]} the {b.kind}?", "Yes." if holds else "No."


def neighbour(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """What is left of the star? A red circle. Asked where exactly one thing is, and no other is doubtful."""
    found = []
    for thing in scene.things:
        others = [t for t in scene.things if t is not thing]
        if not _alone(scene, kind=thing.kind) or not all(_apart(thing, t, "x") for t in others):
            continue
        for word, side in (
            ("left", [t for t in others if t.x < thing.x]),
            ("right", [t for t in others if t.x > thing.x]),
        ):
            if len(side) == 1:
                found.append((f"What is {word} of the {thing.kind}?", sentence(with_article(name(side[0])))))
    return found[rng.integers(len(found))] if found else None


def read(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """What does the sign say? Stop."""
    signs = [t for t in scene.things if t.kind == "sign"]
    return ("What does the sign say?", sentence(signs[0].word)) if len(signs) == 1 else None


QUESTIONS: dict[str, Callable[[Scene, np.random.Generator], Pair | None]] = {
    "colour": colour,
    "shape": shape,
    "size": size,
    "where": where,
    "count": count,
    "count_kind": count_kind,
    "exists": exists,
    "relation": relation,
    "neighbour": neighbour,
    "read": read,
}


def ask(
    scene: Scene, rng: np.random.Generator, turns: int, kinds: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    """Up to `turns` different questions: (kind, question, answer), of the given kinds in random order."""
    asked: list[tuple[str, str, str]] = []
    for kind in rng.permutation(kinds):
        pair = QUESTIONS[kind](scene, rng)
        if pair and len(asked) < turns:
            asked.append((str(kind), *pair))
    return asked


def _shapes(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if t.kind in SHAPES]


def _alone(scene: Scene, **attributes: str) -> bool:
    """Whether exactly one thing has these attributes."""
    hits = [t for t in scene.things if all(getattr(t, key) == value for key, value in attributes.items())]
    return len(hits) == 1


def _apart(a: Thing, b: Thing, axis: str) -> bool:
    return abs(getattr(a, axis) - getattr(b, axis)) > _MARGIN


def _pick(rng: np.random.Generator, things: list[Thing]) -> Thing | None:
    return things[rng.integers(len(things))] if things else None
