# SPDX-License-Identifier: Apache-2.0
"""Masks and maps of classes in picture files, beside the pictures they belong to."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.stores import PICTURES


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and the file that tells what its pixels are; `record` is their common name."""

    record: str
    picture: pathlib.Path
    mask: pathlib.Path


def pair_files(image_root: str, mask_root: str) -> list[Pair]:
    """The PNGs below a folder, each with the picture of the same name (and sub-folder) in another folder.

    A picture that is missing is found out when it is read; its path is then the one it should have as JPEG.

    Raises:
      DataError: no PNG, or no such folder.
    """
    images, masks = pathlib.Path(image_root), pathlib.Path(mask_root)
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError("no such folder", file=folder, remedy="check the path in the config")
    named = sorted(path.relative_to(masks) for path in masks.rglob("*.png"))
    if not named:
        raise DataError("no PNG in this folder", file=masks, remedy="check the path in the config")
    pictures = {
        path.relative_to(images).with_suffix(""): path
        for path in images.rglob("*")
        # Masks may lie in the same folder as their pictures, which are JPEGs then.
        if path.suffix[1:].lower() in PICTURES and (images != masks or path.suffix.lower() != ".png")
    }
    return [
        Pair(
            str(name.with_suffix("")),
            pictures.get(name.with_suffix(""), images / name.with_suffix(".jpg")),
            masks / name,
        )
        for name in named
    ]


def read_mask(path: pathlib.Path, size: tuple[int, int], *, record: str) -> Bool[np.ndarray, "h w"]:
    """A mask: what is brighter than half of the brightest pixel.

    So files with 0 and 255 and files with 0 and 1 mean the same; a file of one value above 0 is all mask.

    Args:
      path: of the file.
      size: height, width of its picture.
      record: for errors.

    Raises:
      DataError: it is missing, cannot be decoded or is of another size.
    """
    values = _read(path, size, record, "L")
    return values > values.max(initial=0) / 2


def read_class_map(path: pathlib.Path, size: tuple[int, int], *, record: str) -> Int[np.ndarray, "h w"]:
    """A number for each pixel, as the file has it: grey values, or places in its palette.

    Arguments and errors as for `read_mask`; also a file of colours.
    """
    return _read(path, size, record, None).astype(np.int64)


def _read(path: pathlib.Path, size: tuple[int, int], record: str, mode: str | None) -> np.ndarray:
    place: dict[str, Any] = {"file": path, "record": record}
    try:
        with Image.open(path) as image:
            image.load()
            if mode is None and len(image.getbands()) > 1:
                raise DataError(
                    f"the file has colours ({image.mode}) where numbers of classes are wanted",
                    remedy="write one number for each pixel, as a grey or palette PNG",
                    **place,
                )
            values = np.asarray(image if mode is None else image.convert(mode))
    except FileNotFoundError as error:
        raise DataError("no such mask", remedy="check the folder and the file name", **place) from error
    # Pillow's decoders raise these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cannot be decoded ({error})", remedy="fetch the mask again or drop the record", **place
        ) from error
    if values.shape != size:
        raise DataError(
            f"the mask is {values.shape} (height, width), its picture {size}",
            remedy="use the mask and the picture of one release, or drop the record",
            **place,
        )
    return values
