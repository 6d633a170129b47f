# SPDX-License-Identifier: Apache-2.0
"""Marks on pictures: boxes with labels, masks, skeletons; for contact sheets, reports and predictions."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.keypoint_sets import bones_among, side

Colour = tuple[int, int, int]

# Far apart from each other, and dark enough for white letters.
COLOURS: tuple[Colour, ...] = (
    *((230, 30, 90), (0, 150, 60), (20, 90, 230), (240, 130, 0), (140, 50, 190), (0, 150, 170)),
    *((165, 95, 30), (215, 60, 200), (95, 130, 0), (90, 95, 170), (190, 0, 0), (80, 80, 80)),
)
_PAPER, _BONE = (255, 255, 255), (255, 255, 255)
_VEIL = 110  # how much of a mask's colour covers the picture, of 255


def colour_of(number: int) -> Colour:
    """The colour of a class or object."""
    return COLOURS[number % len(COLOURS)]


def tint(picture: Image.Image, mask: Bool[np.ndarray, "h w"], colour: Colour) -> Image.Image:
    """Lays a half transparent colour with a firm edge over a mask, which is stretched over the picture."""
    stretched = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    inside = np.asarray(stretched) > 0
    inner = inside.copy()
    inner[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    veil = np.where(inside & ~inner, 255, inside * _VEIL).astype(np.uint8)
    return Image.composite(Image.new("RGB", picture.size, colour), picture, Image.fromarray(veil))


def box(
    picture: Image.Image, corners: Float[np.ndarray, " 4"], colour: Colour, text: str = "", *, width: int = 2
) -> None:
    """Draws a box (left, top, right, bottom in pixels; the ends exclusive) in place, with a label."""
    x0, y0 = (float(v) for v in corners[:2])
    # A box that is turned over or thinner than its line is still seen.
    x1, y1 = (float(max(a, b - 1)) for a, b in zip(corners[:2], corners[2:], strict=True))
    ImageDraw.Draw(picture).rectangle((x0, y0, x1, y1), outline=colour, width=width)
    if text:
        label(picture, (x0, y0), colour, text)


def label(picture: Image.Image, at: tuple[float, float], colour: Colour, text: str) -> None:
    """Writes on a patch of colour, in place, above a point or below it where there is no room above."""
    draw, write = ImageDraw.Draw(picture), font(max(11, round(min(picture.size) / 45)))
    left, top, right, bottom = draw.textbbox((0, 0), text, write)
    wide, high = right - left + 4, bottom - top + 4
    x = min(max(at[0], 0), max(picture.width - wide, 0))
    y = at[1] - high if at[1] >= high else max(at[1], 0)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, _PAPER, write)


def skeleton(
    picture: Image.Image,
    points: Float[np.ndarray, "P 2"],
    visibility: Sequence[int],
    names: Sequence[str],
    *,
    radius: float = 4,
) -> None:
    """Draws keypoints in place: green on the left side of the body, red on the right, yellow in the middle.

    Args:
      picture: drawn on.
      points: x, y in pixels.
      visibility: 0 is left out, 1 (hidden) hollow, 2 filled.
      names: of the keypoints; they decide where bones go (`keypoint_sets`). What has no name is left out.
      radius: of a point, pixels.
    """
    draw = ImageDraw.Draw(picture)
    at = {
        name: (float(x), float(y))
        for name, (x, y), v in zip(names, points, visibility, strict=True)
        if name and v and np.isfinite((x, y)).all()
    }
    for a, b in bones_among(tuple(names)):
        if names[a] in at and names[b] in at:
            line = (*at[names[a]], *at[names[b]])
            draw.line(line, (40, 40, 40), round(radius) + 1)
            draw.line(line, _BONE, max(1, round(radius / 2)))
    for name, v in zip(names, visibility, strict=True):
        if name in at:
            colour = {"left": (0, 190, 70), "right": (235, 40, 40)}.get(side(name), (250, 210, 0))
            x, y = at[name]
            corners = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(corners, fill=colour if v == 2 else None, outline=colour, width=2)


@functools.lru_cache(maxsize=16)
def font(size: int = 11) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)
