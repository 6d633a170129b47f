# SPDX-License-Identifier: Apache-2.0
"""Whether generated pictures show what was asked for, judged by their pixels.

Made for synthetic scenes with one thing on a background of muted colours. No network judges: what stands out
is compared with the known colours and, as a silhouette, with every known shape.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from vllm2_jax.evals.metric import Metric

# Distance of RGB from all of the background's at which a pixel belongs to the thing. The nearest pair of a
# thing's and a background's colour is 100 apart.
_CONTRAST = 50.0
_LEAST = 8  # pixels of a thing


@dataclasses.dataclass(frozen=True)
class Thing:
    """What a picture shows: names of a shape and a colour, empty if nothing stands out."""

    shape: str
    colour: str


@dataclasses.dataclass(frozen=True)
class Judge:
    """Names what stands out in a picture.

    Attributes:
      colours: name -> RGB.
      shapes: names of the silhouettes, which may repeat (sizes, angles).
      silhouettes: share of each pixel that the shape covers, its centre of mass in the middle.
      ground: least and greatest RGB of backgrounds.
    """

    colours: dict[str, tuple[int, int, int]]
    shapes: tuple[str, ...]
    silhouettes: Float[np.ndarray, "n S S"]
    ground: tuple[Int[np.ndarray, "3"], Int[np.ndarray, "3"]]

    def __call__(self, picture: UInt8[np.ndarray, "S S 3"]) -> Thing:
        """The nearest colour, and the shape whose silhouette overlaps most."""
        pixels = picture.astype(np.float32)
        distance = np.linalg.norm(pixels - np.clip(pixels, *self.ground), axis=-1)
        inside = distance > _CONTRAST
        if inside.sum() < _LEAST:
            return Thing("", "")
        palette = np.array(list(self.colours.values()), np.float32)
        found = np.median(pixels[inside], axis=0)
        colour = list(self.colours)[int(np.linalg.norm(palette - found, axis=1).argmin())]
        # Full contrast is that of the colour itself: pixels at the rim are covered in part.
        share = centred(np.clip(distance / np.median(distance[inside]), 0, 1) * _largest(inside))
        common = np.minimum(share, self.silhouettes).sum((1, 2))
        either = np.maximum(share, self.silhouettes).sum((1, 2))
        return Thing(self.shapes[int((common / either).argmax())], colour)


def centred(share: Float[np.ndarray, "S S"]) -> Float[np.ndarray, "S S"]:
    """The same with its centre of mass in the middle."""
    middle = (np.array(share.shape) - 1) / 2
    return np.clip(ndimage.shift(share, middle - ndimage.center_of_mass(share), order=1), 0, 1)


def _largest(inside: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    """The largest connected part and its rim; specks elsewhere go."""
    parts, _ = ndimage.label(inside, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_dilation(parts == sizes.argmax(), np.ones((3, 3)))


def agreement(name: str = "agreement") -> Metric:
    """Share of pictures with the right shape, the right colour, and both.

    `.../chance/...` are the same shares of all pictures with all prompts, so of pictures that were painted
    without listening.
    """

    def record(found: Thing, wanted: Thing) -> tuple[Thing, Thing]:
        return found, wanted

    def summarise(records: Sequence[tuple[Thing, Thing]]) -> dict[str, float]:
        found, wanted = zip(*records, strict=True)
        same = {
            key: np.array([[getattr(f, key) == getattr(w, key) for w in wanted] for f in found])
            for key in ("shape", "colour")
        }
        same["both"] = same["shape"] & same["colour"]
        right = {f"{name}/{key}": float(pairs.diagonal().mean()) for key, pairs in same.items()}
        return right | {f"{name}/chance/{key}": float(pairs.mean()) for key, pairs in same.items()}

    return Metric(record, summarise)


@dataclasses.dataclass(frozen=True)
class Edit:
    """A picture before and after an edit."""

    before: UInt8[np.ndarray, "S S 3"]
    after: UInt8[np.ndarray, "S S 3"]


def edits(name: str = "edits") -> Metric:
    """Mean absolute error of edited pictures in grey levels, that of leaving them be, and the ratio.

    A ratio of 1 is as good as doing nothing, 0 is perfect.
    """

    def record(found: UInt8[np.ndarray, "S S 3"], truth: Edit) -> tuple[float, float]:
        after = truth.after.astype(np.float64)
        return float(np.abs(found - after).mean()), float(np.abs(truth.before - after).mean())

    def summarise(records: Sequence[tuple[float, float]]) -> dict[str, float]:
        error, unchanged = np.mean(records, axis=0)
        values = {f"{name}/error": float(error), f"{name}/unchanged": float(unchanged)}
        return values | ({f"{name}/ratio": float(error / unchanged)} if unchanged else {})

    return Metric(record, summarise)
