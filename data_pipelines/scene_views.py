# SPDX-License-Identifier: Apache-2.0
"""Random views of a picture whose every pixel has a class: sizes, parts, mirror images, colours.

The recipe of semantic segmentation (mmsegmentation's for ADE20K): the shorter side becomes 256 to 1024
pixels, of which a square of 512 is cut out that no class fills by more than three quarters; mirrored half of
the time; brightness, contrast, saturation and hue change.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

SIDE = 512  # pixels of the part; other sizes go with it
LONGEST = 4  # most sides that a picture is long (2048 for 512)
UNLABELLED = 255  # pixels without a class
_SCALES = (0.5, 2.0)
_LARGEST_SHARE = 0.75
_TRIES = 10
_BRIGHTNESS, _FACTOR, _HUE = 32, (0.5, 1.5), 18 / 180  # grey levels; times; parts of the circle


@dataclasses.dataclass(frozen=True)
class SceneView:
    """A picture, the class of each pixel (UNLABELLED where there is none), and whether it is mirrored."""

    image: UInt8[np.ndarray, "h w 3"]
    classes: Int[np.ndarray, "h w"]
    flipped: bool = False


def fit_scene(whole: SceneView, side: int = SIDE) -> SceneView:
    """The view for tests: the shorter side `side` pixels, the longer one 4 times as much at most."""
    height, width = whole.image.shape[:2]
    scale = _scale((height, width), side)
    return _resized(whole, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))


def augment_scene(whole: SceneView, rng: np.random.Generator, side: int = SIDE) -> SceneView:
    """A random view for training, of at most `side` x `side` pixels.

    The part is cut out of the original picture, so that pixels are interpolated once. If no try gives a part
    with two classes of which none dominates, the last one with any class is taken.
    """
    scale = _scale(whole.image.shape[:2], side) * float(rng.uniform(*_SCALES))
    view = whole
    for _ in range(_TRIES):
        part = _part(whole, max(1, round(side / scale)), rng)
        counts = np.bincount(part.classes[part.classes != UNLABELLED])
        if len(counts):
            view = part
            if (counts > 0).sum() > 1 and counts.max() < _LARGEST_SHARE * counts.sum():
                break
    height, width = view.image.shape[:2]
    # The whole picture, where no part has a class, may be longer than the square.
    scale = min(scale, side / max(height, width))
    view = _resized(view, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    if rng.random() < 0.5:
        view = SceneView(view.image[:, ::-1].copy(), view.classes[:, ::-1].copy(), True)
    return dataclasses.replace(view, image=distort(view.image, rng))


def distort(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Other colours: each of four changes is made half of the time."""
    changed: np.ndarray = image.astype(np.float32)
    if rng.random() < 0.5:
        changed += rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast = rng.uniform(*_FACTOR) if rng.random() < 0.5 else 1.0
    early = rng.random() < 0.5  # contrast before the colours or after them
    changed = _cut(changed) * (contrast if early else 1.0)
    hsv = np.asarray(Image.fromarray(_cut(changed).astype(np.uint8)).convert("HSV")).astype(np.float32)
    if rng.random() < 0.5:
        hsv[..., 1] = _cut(hsv[..., 1] * rng.uniform(*_FACTOR))
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + 256 * rng.uniform(-_HUE, _HUE)) % 256
    rgb = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    return _cut(rgb * (1.0 if early else contrast)).astype(np.uint8)


def _cut(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255)


def _scale(size: tuple[int, ...], side: int) -> float:
    return min(side / min(size[:2]), LONGEST * side / max(size[:2]))


def _part(whole: SceneView, side: int, rng: np.random.Generator) -> SceneView:
    """A random square, cut at the border of a smaller picture."""
    height, width = (min(side, length) for length in whole.image.shape[:2])
    top = int(rng.integers(whole.image.shape[0] - height + 1))
    left = int(rng.integers(whole.image.shape[1] - width + 1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    return SceneView(whole.image[rows, columns], whole.classes[rows, columns])


def _resized(view: SceneView, height: int, width: int) -> SceneView:
    if view.image.shape[:2] == (height, width):
        return view
    image = Image.fromarray(view.image).resize((width, height), Image.Resampling.BILINEAR)
    classes = Image.fromarray(view.classes.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    return SceneView(np.asarray(image), np.asarray(classes).astype(np.int64), view.flipped)
