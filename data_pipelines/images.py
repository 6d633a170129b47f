# SPDX-License-Identifier: Apache-2.0
"""Pictures from files, and their tiles for the vision tower.

Arithmetic of the official code: CLIPImageProcessor (Pillow's bicubic filter) and `mm_utils.py`. Tiles stay
uint8; the model normalises them on the device. Golden file: preprocess.npz.
"""

import dataclasses
import functools
import io
import pathlib
import warnings
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from data_pipelines.errors import DataError, machine_failed

Mode = Literal["anyres", "pad", "square", "stretch"]

PAD_COLOUR = (122, 116, 104)  # CLIP's mean, rounded down


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a picture becomes tiles.

    Attributes:
      mode: "anyres" cuts the picture into up to `max_tiles` tiles and appends the whole one; "pad" makes it
        square with bars; "square" takes the central square, losing the rest; "stretch" ignores the aspect
        ratio. Region masks fit "anyres" and "stretch".
      size: S, the side of a tile in pixels: 336 for the 7B model, 448 for the 26B one.
      max_tiles: most tiles of the grid, the whole picture not counted: 4 for 7B, 6 for 26B.
    """

    mode: Mode = "anyres"
    size: int = 336
    max_tiles: int = 4

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            raise ValueError(f"unknown tiling mode {self.mode!r}, there are {', '.join(get_args(Mode))}")
        if self.size < 1 or self.max_tiles < 1:
            raise ValueError(f"size {self.size} and max_tiles {self.max_tiles} have to be positive")

    @property
    def for_regions(self) -> "Tiling":
        """The same, with the picture stretched unless it is tiled, so that masks stretched to S x S align."""
        return self if self.mode == "anyres" else dataclasses.replace(self, mode="stretch")

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "T S S 3"]:
        """The tiles of a picture, the whole picture last."""
        if self.mode == "anyres":
            return anyres(image, self.size, self.max_tiles)
        if self.mode == "pad":
            return _shortest_edge(pad_square(image), self.size)[None]
        if self.mode == "square":
            return _centre_crop(_shortest_edge(image, self.size), self.size)[None]
        # Half a grey level of rounding; the official code keeps floats here.
        return np.clip(np.rint(stretch(image, self.size)), 0, 255).astype(np.uint8)[None]


def load_image(source: str | pathlib.Path | bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a picture to RGB, upright.

    EXIF rotation is applied, transparency is laid over white, 16 bits become 8, grey and CMYK become RGB.

    Args:
      source: a path, or the encoded bytes.

    Raises:
      DataError: missing, truncated or not a picture; names the file.
      OSError: the machine failed to read, see `errors.machine_failed`.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            # Damaged EXIF blocks and huge pictures warn; neither keeps the pixels from being right.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise DataError("no such picture", file=name, remedy="check image_root and the file name") from error
    # Pillow's decoders raise these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if machine_failed(error):
            raise
        raise DataError(
            f"cannot be decoded ({error})",
            file=name,
            remedy="fetch the picture again or drop the record",
        ) from error


def check_size(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, file: str, record: str | int
) -> None:
    """Raises DataError if a picture is not of the size (height, width) that its annotations are for."""
    if image.shape[:2] != size:
        raise DataError(
            f"the picture is {image.shape[:2]} (height, width), its annotations are for {size}",
            file=file,
            record=record,
            remedy="use the original picture, or drop the record if the picture is rotated by EXIF",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, and Pillow would clip them at 255
        return Image.fromarray(
            (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@functools.cache
def grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of at most `max_tiles` tiles, in the order of their tile count."""
    sides = range(1, max_tiles + 1)
    found = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of the grid for a picture: the aspect ratio nearest to its own.

    On an exact tie the larger grid wins if the picture has more than half its pixels. (Grids of equal count
    never tie as the best: one with fewer tiles lies between.)
    """
    best, best_distance = (1, 1), float("inf")
    for columns, rows in grids(max_tiles):
        distance = abs(width / height - columns / rows)
        larger = width * height > 0.5 * size * size * columns * rows
        if distance < best_distance or (distance == best_distance and larger):
            best, best_distance = (columns, rows), distance
    return best


def anyres(
    image: UInt8[np.ndarray, "h w 3"], size: int, max_tiles: int
) -> UInt8[np.ndarray, "T {size} {size} 3"]:
    """The grid's tiles in row-major order, then the whole picture; only the latter for a 1 x 1 grid."""
    height, width = image.shape[:2]
    columns, rows = grid(width, height, size, max_tiles)
    whole = _resize(image, size, size)
    if columns * rows == 1:
        return whole[None]
    tiles = _resize(image, size * columns, size * rows)
    tiles = tiles.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return np.concatenate([tiles, whole[None]])


def pad_square(
    image: UInt8[np.ndarray, "h w 3"], colour: tuple[int, int, int] = PAD_COLOUR
) -> UInt8[np.ndarray, "s s 3"]:
    """The picture in the middle of a square of one colour, the mean one by default."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def stretch(image: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "{size} {size} 3"]:
    """The picture at S x S whatever its shape, 0..255 and not rounded.

    In two steps, as for the official region data: the shorter edge to S (bicubic), then both to S (bilinear).
    """
    return bilinear(_shortest_edge(image, size).astype(np.float32), size, size)


def bilinear(
    x: Float[np.ndarray, "h w *c"], height: int, width: int
) -> Float[np.ndarray, "{height} {width} *c"]:
    """Bilinear resize without antialiasing, as PyTorch's `interpolate` does by default."""
    for axis, size in ((0, height), (1, width)):
        old = x.shape[axis]
        at = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0).astype(np.float32)
        low = np.minimum(at.astype(np.int64), old - 1)
        high = np.minimum(low + 1, old - 1)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)]).astype(np.float32)
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _shortest_edge(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    long = int(size * long / short)
    return _resize(image, *((size, long) if width <= height else (long, size)))


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]
