# SPDX-License-Identifier: Apache-2.0
"""From a scene to pixels: the picture, the visible part of every thing, its box and a person's keypoints."""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.synthetic.person import HEAD_RADIUS, INDEX
from data_pipelines.synthetic.scene import COLOURS, Scene, Thing

# Everything is painted at three times the resolution: averaging 3 x 3 pixels smooths the edges, and the
# middle one tells what lies at the centre of the pixel. That needs an odd number.
_FINE = 3
_SKIN, _TROUSERS, _EYES, _NOSE = (224, 172, 130), (70, 72, 90), (30, 25, 20), (190, 120, 90)

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A picture and what is known about it.

    Attributes:
      image: uint8 [h, w, 3].
      masks: bool [n, h, w], the visible part of every thing, in the order of `Scene.things`.
      boxes: float32 [n, 4], the tight box of each mask: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; zeros
        for a thing of which nothing is visible.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def render(scene: Scene, size: int) -> Rendering:
    """Paints a scene so that its shorter side has `size` pixels."""
    scale = size / min(1.0, scene.aspect)  # pixels in one unit, the height
    height, width = round(scale), round(scale * scene.aspect)
    canvas = _Canvas(scene, width * _FINE, height * _FINE)
    for number, thing in enumerate(scene.things, start=1):
        _paint(canvas, thing, scale * _FINE, number)
    image = np.asarray(canvas.picture.reduce(_FINE))
    owner = np.asarray(canvas.owner)[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]
    masks = owner == np.arange(1, len(scene.things) + 1, dtype=np.uint8)[:, None, None]
    return Rendering(image, masks, boxes_of(masks))


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes [n, 4] (x0, y0, x1, y1; ends exclusive) of boolean masks [n, h, w]; 0 for empty ones."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(xs):
            box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def keypoints(scene: Scene, number: int, rendering: Rendering) -> tuple[np.ndarray, np.ndarray]:
    """A person's keypoints in one rendering of its scene.

    Args:
      scene: the scene.
      number: which of its things; a person.
      rendering: of this scene.

    Returns:
      float32 [17, 2] x, y in pixels and int32 [17] as in COCO: 2 visible, 1 hidden behind another thing,
      0 outside of the picture (its point is zeros then).
    """
    person, (height, width) = scene.things[number], rendering.image.shape[:2]
    points = (np.array(person.joints) * person.radius + (person.x, person.y)) * (width / scene.aspect, height)
    x, y = np.floor(points).astype(int).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = np.where(inside, (x, y), 0)
    in_front = rendering.masks[number + 1 :, y, x].any(0)
    visibility = np.where(inside, np.where(in_front, 1, 2), 0).astype(np.int32)
    return np.where(inside[:, None], points, 0).astype(np.float32), visibility


class _Canvas:
    """A picture and a map of which thing owns each pixel, painted with the same strokes."""

    def __init__(self, scene: Scene, width: int, height: int):
        top, bottom = np.array(scene.background, np.float32)
        column = np.linspace(top, bottom, height).round().astype(np.uint8)
        self.picture = Image.fromarray(np.repeat(column[:, None], width, axis=1))
        self.owner = Image.new("L", (width, height))
        self.draw, self.claim = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.owner)

    def polygon(self, points: np.ndarray, colour: Colour, number: int) -> None:
        corners = points.ravel().tolist()
        self.draw.polygon(corners, fill=colour)
        self.claim.polygon(corners, fill=number)

    def disc(self, centre: np.ndarray, r: float, colour: Colour, number: int) -> None:
        box = (*(centre - r).tolist(), *(centre + r).tolist())
        self.draw.ellipse(box, fill=colour)
        self.claim.ellipse(box, fill=number)

    def ring(self, centre: np.ndarray, r: float, width: float, colour: Colour, number: int) -> None:
        box = (*(centre - r).tolist(), *(centre + r).tolist())
        self.draw.ellipse(box, outline=colour, width=round(width))
        self.claim.ellipse(box, outline=number, width=round(width))

    def stroke(self, points: np.ndarray, width: float, colour: Colour, number: int) -> None:
        """A thick line with round ends and joints."""
        line = points.ravel().tolist()
        self.draw.line(line, fill=colour, width=round(width))
        self.claim.line(line, fill=number, width=round(width))
        for point in points:
            self.disc(point, width / 2, colour, number)


def _paint(canvas: _Canvas, thing: Thing, scale: float, number: int) -> None:
    """Paints one thing as owner `number`; `scale` is in fine pixels a unit."""
    centre, r, colour = np.array([thing.x, thing.y]) * scale, thing.radius * scale, COLOURS[thing.colour]
    if thing.kind == "circle":
        canvas.disc(centre, r, colour, number)
    elif thing.kind == "ring":
        canvas.ring(centre, r, 0.38 * r, colour, number)
    elif thing.kind == "person":
        _paint_person(canvas, np.array(thing.joints) * r + centre, r, colour, number)
    elif thing.kind == "sign":
        _paint_sign(canvas, thing, centre, r, number)
    else:
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        outline = _OUTLINES[thing.kind] @ np.array([[cos, sin], [-sin, cos]]) * r + centre
        canvas.polygon(outline, colour, number)


def _paint_person(canvas: _Canvas, points: np.ndarray, r: float, shirt: Colour, number: int) -> None:
    def at(*names: str) -> np.ndarray:
        return points[[INDEX[name] for name in names]]

    for side in ("left", "right"):
        canvas.stroke(at(f"{side} hip", f"{side} knee", f"{side} ankle"), 0.13 * r, _TROUSERS, number)
    for side in ("left", "right"):
        canvas.stroke(at(f"{side} shoulder", f"{side} elbow", f"{side} wrist"), 0.11 * r, _SKIN, number)
    trunk = at("left shoulder", "right shoulder", "right hip", "left hip", "left shoulder")
    canvas.polygon(trunk, shirt, number)
    canvas.stroke(trunk, 0.12 * r, shirt, number)
    head = at("left ear", "right ear").mean(0)
    neck = at("left shoulder", "right shoulder").mean(0)
    canvas.stroke(np.stack([neck, head]), 0.12 * r, _SKIN, number)
    canvas.disc(head, HEAD_RADIUS * r, _SKIN, number)
    for eye in at("left eye", "right eye"):
        canvas.disc(eye, 0.04 * r, _EYES, number)
    canvas.disc(at("nose")[0], 0.045 * r, _NOSE, number)


def _paint_sign(canvas: _Canvas, thing: Thing, centre: np.ndarray, r: float, number: int) -> None:
    board = np.array([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]) * r + centre
    canvas.polygon(board, COLOURS[thing.colour], number)
    ink = COLOURS["white" if sum(COLOURS[thing.colour]) < 400 else "black"]
    canvas.draw.text(tuple(centre.tolist()), thing.word, ink, _font(max(6, round(0.72 * r))), anchor="mm")


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _regular(corners: int, inner: float = 0.0) -> np.ndarray:
    """Corners of a regular polygon, one pointing up; with `inner`, of a star with that inner radius."""
    radii = np.array([1.0, inner] if inner else [1.0])
    count = corners * len(radii)
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.tile(radii, corners)[:, None]


def _cross(arm: float) -> np.ndarray:
    quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter, *(quarter @ turn for turn in turns)])


_OUTLINES = {
    "square": np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.4),
    "cross": _cross(0.34),
}
