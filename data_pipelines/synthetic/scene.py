# SPDX-License-Identifier: Apache-2.0
"""What a synthetic scene holds, and how one is drawn from a random generator.

A scene is plain data in units of its height (x grows to the right, y downwards), so one scene can be rendered
at any resolution. Everything random comes from the generator handed in: equal generators give equal scenes,
on every machine.
"""

import dataclasses

import numpy as np

from data_pipelines.synthetic.person import pose

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
KINDS = (*SHAPES, "person", "sign")
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 30),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (140, 60, 175),
    "black": (20, 20, 22),
    "white": (252, 252, 252),
}
# Muted, so that every colour above stands out from every one of these.
BACKGROUNDS = ((176, 184, 178), (168, 176, 190), (188, 180, 168), (160, 172, 168))
WORDS = ("stop", "open", "exit", "taxi", "cafe", "bus", "shop", "sale")
RADIUS = {"small": 0.10, "large": 0.19, "huge": 0.38}  # of a shape or a sign (half its width)
PERSON_RADIUS = {"small": 0.17, "large": 0.25, "huge": 0.4}  # half of a person's height


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
      kind: one of `KINDS`.
      colour: key of `COLOURS`; of a person's shirt, of a sign's board.
      size: "small", "large" or "huge".
      x, y: centre, in units of the scene's height.
      angle: rotation in radians, clockwise.
      word: what a sign says, else "".
      joints: a person's 17 keypoints (x, y) in the order of `person.KEYPOINTS`, in units of its radius around
        its centre; else ().
    """

    kind: str
    colour: str
    size: str
    x: float
    y: float
    angle: float = 0.0
    word: str = ""
    joints: tuple[tuple[float, float], ...] = ()

    @property
    def radius(self) -> float:
        """Half the extent, in units of the scene's height."""
        return (PERSON_RADIUS if self.kind == "person" else RADIUS)[self.size]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and things, painted in order: later ones hide earlier ones.

    Attributes:
      things: back to front.
      background: RGB at the top and at the bottom; the rows between are blended.
      aspect: width divided by height.
    """

    things: tuple[Thing, ...]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    aspect: float = 1.0


@dataclasses.dataclass(frozen=True)
class Level:
    """How hard scenes are. Counts are inclusive ranges.

    Attributes:
      shapes, people, signs: how many of each.
      distinct: no two shapes share a colour or a kind, so that either names one.
      sizes: which sizes there are.
      grid: things sit near the centres of this many columns and rows (at most as many of them as there are
        cells) instead of anywhere; 0 for anywhere.
      overlap: how far two things may overlap, as a share of the sum of their radii.
      aspects: the shapes of picture to choose from, width divided by height.
    """

    shapes: tuple[int, int] = (1, 3)
    people: tuple[int, int] = (0, 0)
    signs: tuple[int, int] = (0, 0)
    distinct: bool = True
    sizes: tuple[str, ...] = ("small", "large")
    grid: int = 0
    overlap: float = 0.0
    aspects: tuple[float, ...] = (1.0,)


LEVELS = {
    "close": Level(shapes=(1, 1), sizes=("huge",), grid=1),
    "one": Level(shapes=(1, 1), sizes=("large",), grid=2),
    "easy": Level(grid=2),
    "medium": Level(shapes=(1, 4)),
    "bold": Level(shapes=(1, 4), sizes=("large",)),
    "bolder": Level(shapes=(2, 4), sizes=("large",), distinct=False),
    "full": Level((1, 5), (0, 2), (0, 1), distinct=False, overlap=0.3, aspects=(0.75, 1.0, 1.5)),
    "person": Level((0, 1), (1, 1), sizes=("large",)),
    "portrait": Level((0, 0), (1, 1), sizes=("huge",)),
    "people": Level((0, 2), (1, 3), overlap=0.2, aspects=(0.75, 1.0, 1.5)),
}


def sample(rng: np.random.Generator, level: Level) -> Scene:
    """Draws a scene. Things that find no free place are left out, at least one is always there."""
    aspect = float(rng.choice(level.aspects))
    kinds = _kinds(rng, level)
    colours = rng.choice(list(COLOURS), len(kinds), replace=not level.distinct)
    sizes = rng.choice(level.sizes, len(kinds))
    side = level.grid or 2  # without a grid they are drawn all the same, and not used
    centres = (np.arange(side) + 0.5) / side
    cells = [(float(x), float(y)) for y in centres for x in centres]
    rng.shuffle(cells)

    things: list[Thing] = []
    for number, (kind, colour, size) in enumerate(zip(kinds, colours, sizes, strict=True)):
        thing = Thing(kind, str(colour), str(size), 0.0, 0.0)
        if kind == "person":
            thing = dataclasses.replace(thing, joints=pose(rng))
        elif kind == "sign":
            thing = dataclasses.replace(thing, word=str(rng.choice(WORDS)))
        else:
            thing = dataclasses.replace(thing, angle=float(rng.uniform(-0.3, 0.3)))
        if level.grid:
            (x, y), (dx, dy) = cells[number], rng.uniform(-0.05, 0.05, 2)
            things.append(dataclasses.replace(thing, x=x * aspect + dx, y=y + dy))
        else:
            placed = place(rng, thing, things, aspect, level.overlap)
            things += [placed] if placed else []
    top, bottom = rng.integers(len(BACKGROUNDS), size=2)
    return Scene(tuple(things), (BACKGROUNDS[top], BACKGROUNDS[bottom]), aspect)


def is_novel(thing: Thing) -> bool:
    """Whether its kind and colour are one of the pairs (every fourth) that can be kept out of training.

    Every kind and every colour is in both parts.
    """
    return (KINDS.index(thing.kind) + list(COLOURS).index(thing.colour)) % 4 == 0


def place(
    rng: np.random.Generator, thing: Thing, others: list[Thing], aspect: float, overlap: float
) -> Thing | None:
    """The thing at a random place where it fits and overlaps no other too far, or None after 30 tries."""
    r = thing.radius
    for x, y in rng.uniform((r, r), (aspect - r, 1 - r), (30, 2)):
        near = [np.hypot(x - o.x, y - o.y) < (1 - overlap) * (r + o.radius) for o in others]
        if not any(near):
            return dataclasses.replace(thing, x=float(x), y=float(y))
    return None


def _kinds(rng: np.random.Generator, level: Level) -> list[str]:
    """The kinds of a scene, in random order (which is also the order of painting)."""

    def count(bounds: tuple[int, int]) -> int:
        return int(rng.integers(bounds[0], bounds[1] + 1))

    shapes = rng.choice(SHAPES, count(level.shapes), replace=not level.distinct)
    kinds = [*map(str, shapes), *["person"] * count(level.people), *["sign"] * count(level.signs)]
    rng.shuffle(kinds)
    return kinds
