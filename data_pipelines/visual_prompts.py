# SPDX-License-Identifier: Apache-2.0
"""Marks that a user draws on an object: points, a polygon, a scribble, circles, a box, or the whole mask.

All six are drawn at the size of a tile. The recipe and its numbers are those of the official sampler; points,
scribbles and circles stay inside the object.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from data_pipelines.masks import box_mask, mask_boxes

Mask = Bool[np.ndarray, "S S"]

SMALLEST = 10  # pixels that an object needs to be marked
_MOST_POINTS = 20
_MOST_STROKES = 5
_BEND, _ROUND = 0.2, 0.05  # of a polygon's curves: length of the handles, roundness of the corners
_SAMPLES = 100  # of each curve


@dataclasses.dataclass(frozen=True)
class Stroke:
    """How a hand moves.

    Attributes:
      steps: least number of moves, and one more than the most.
      fastest: longest move in pixels.
      change: most by which length (pixels) and direction (radians) of a move differ from the one before.
      width: of the brush in pixels, as `steps`.
      jitter: most by which half of the points are off, in pixels.
      start: length of the first move at most; the whole stroke is shifted by about half of it.
    """

    steps: tuple[int, int]
    fastest: float
    change: tuple[float, float]
    width: tuple[float, float]
    jitter: float
    start: float


SCRIBBLES = (
    Stroke((10, 30), 20, (15, 0.5), (3, 10), 3, 6),
    Stroke((6, 22), 12, (8, 0.5), (2.5, 5), 1.5, 3),
)
CIRCLES = (
    Stroke((5, 30), 15, (10, 1.5), (20, 50), 10, 10),
    Stroke((5, 15), 8, (4, 1.5), (20, 50), 5, 10),
    Stroke((5, 20), 7, (3.5, 1.5), (10, 30), 5, 4),
)


def draw_prompt(shape: str, mask: Mask, rng: np.random.Generator) -> Mask:
    """One mark on an object; empty if the object has fewer than `SMALLEST` pixels.

    Args:
      shape: a key of `SHAPES`.
      mask: the object in the tile.
      rng: decides.
    """
    if mask.sum() < SMALLEST:
        return np.zeros_like(mask)
    return SHAPES[shape](mask, rng)


def point(mask: Mask, rng: np.random.Generator) -> Mask:
    """1 to 20 single pixels of the object."""
    prompt = np.zeros_like(mask)
    prompt[tuple(_some_pixels(mask, rng).T)] = True
    return prompt


def box(mask: Mask, rng: np.random.Generator) -> Mask:
    """The filled box around the object. Its right and lower ends, which are exclusive, are included."""
    return box_mask(mask_boxes(mask[None])[0], *mask.shape).astype(bool)


def whole(mask: Mask, rng: np.random.Generator) -> Mask:
    """The object itself."""
    return mask.copy()


def scribble(mask: Mask, rng: np.random.Generator) -> Mask:
    """1 to 5 thin strokes that start on the object; what leaves it is cut off."""
    return _strokes(mask, rng, SCRIBBLES)


def circle(mask: Mask, rng: np.random.Generator) -> Mask:
    """1 to 5 thick, winding strokes that start on the object; what leaves it is cut off."""
    return _strokes(mask, rng, CIRCLES)


def polygon(mask: Mask, rng: np.random.Generator) -> Mask:
    """A closed smooth line through 1 to 20 pixels of the object; it may leave it between them."""
    points = _some_pixels(mask, rng)[:, ::-1].astype(np.float64)  # x, y
    around = points - points.mean(0)
    points = points[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]
    drawn = np.rint(_closed_curve(points)).astype(int).clip(0, np.array(mask.shape[::-1]) - 1)
    prompt = np.zeros_like(mask)
    prompt[drawn[:, 1], drawn[:, 0]] = True
    return prompt


SHAPES: dict[str, Callable[[Mask, np.random.Generator], Mask]] = {
    "point": point,
    "polygon": polygon,
    "scribble": scribble,
    "circle": circle,
    "box": box,
    "mask": whole,
}


def _some_pixels(mask: Mask, rng: np.random.Generator) -> np.ndarray:
    """1 to 20 pixels, as rows and columns."""
    pixels = np.argwhere(mask)
    return rng.permutation(pixels)[: int(rng.integers(1, min(_MOST_POINTS, len(pixels)) + 1))]


def _strokes(mask: Mask, rng: np.random.Generator, kinds: tuple[Stroke, ...]) -> Mask:
    drawn = np.zeros_like(mask)
    for _ in range(int(rng.integers(1, _MOST_STROKES + 1))):
        start = rng.permutation(np.argwhere(mask))[0][::-1].astype(np.float64)
        drawn |= _stroke(start, mask.shape, kinds[int(rng.integers(len(kinds)))], rng)
    inside = drawn & mask
    if not inside.any():  # the shift took all strokes off the object; leave the last one's start
        inside[int(start[1]), int(start[0])] = True
    return inside


def _stroke(
    start: Float[np.ndarray, " 2"], size: tuple[int, ...], kind: Stroke, rng: np.random.Generator
) -> Mask:
    """A walk that turns and changes its speed, drawn with a brush, then shifted and shaken."""
    speed, angle = rng.uniform(0, kind.start), rng.uniform(-math.pi, math.pi)
    points = [start]
    for _ in range(int(rng.integers(*kind.steps))):
        speed = float(np.clip(speed + rng.uniform(-kind.change[0], kind.change[0]), 0, kind.fastest))
        angle += rng.uniform(-kind.change[1], kind.change[1])
        step = points[-1] + speed * np.array([math.cos(angle), math.sin(angle)])
        points.append(step.clip(0, np.array(size[::-1]) - 1))
    shift, turn = abs(rng.normal(0, kind.start / 2)), rng.uniform(-math.pi, math.pi)
    path = np.stack(points) + shift * np.array([math.cos(turn), math.sin(turn)])
    shaken = rng.random(len(path)) < 0.5
    path[shaken] += rng.uniform(-kind.jitter, kind.jitter, (int(shaken.sum()), 2))

    picture = Image.new("1", (size[1], size[0]))
    pen, width = ImageDraw.Draw(picture), int(rng.uniform(*kind.width))
    pen.line([tuple(p) for p in path.tolist()], fill=1, width=width)
    radius = width // 2 - 1
    for x, y in path.tolist():
        if radius > 0:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(picture).astype(bool)


def _closed_curve(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """Cubic Bezier curves through points, back to the first one, without corners."""
    if len(points) == 1:
        return points
    after = np.roll(points, -1, axis=0)
    leaving = np.arctan2(*(after - points).T[::-1])
    arriving = np.roll(leaving, 1)
    share = math.atan(_ROUND) / math.pi + 0.5
    # The mean of two directions is the opposite one where they lie more than half a turn apart.
    apart = np.abs(arriving - leaving) > math.pi
    angles = share * leaving + (1 - share) * arriving + np.where(apart, math.pi, 0)
    handles = _BEND * np.linalg.norm(after - points, axis=1, keepdims=True)
    heading = np.stack([np.cos(angles), np.sin(angles)], 1)
    first, second = points + handles * heading, after - handles * np.roll(heading, -1, axis=0)
    t = np.linspace(0, 1, _SAMPLES)[:, None, None]
    curve = (1 - t) ** 3 * points + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * after
    return curve.reshape(-1, 2)
