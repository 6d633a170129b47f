# SPDX-License-Identifier: Apache-2.0
"""Masks and maps of classes in picture files, beside the pictures they belong to."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from data_pipelines.errors import DataError, machine_failed
from data_pipelines.stores import PICTURES


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and the file that tells what its pixels are; `record` is their common name."""

    record: str
    picture: pathlib.Path
    mask: pathlib.Path


def pair_files(image_root: str, mask_root: str, names: str = "*") -> list[Pair]:
    """The pictures below a folder, each with the PNG of the same name (and sub-folder) in another folder.

    Both may be one folder; its PNGs are the masks then. Masks without a picture are left out, as releases
    have them in one folder for several splits (CAMO). A missing mask is found out when it is read.

    Args:
      image_root: folder of the pictures.
      mask_root: folder of the masks.
      names: pattern of the pictures' file names; others are left out.

    Raises:
      DataError: no pictures, or no such folder.
    """
    images, masks = pathlib.Path(image_root), pathlib.Path(mask_root)
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError("no such folder", file=folder, remedy="check the path in the config")
    kinds = [kind for kind in PICTURES if images != masks or kind != "png"]
    pictures = sorted(path for path in images.rglob(names) if path.suffix[1:].lower() in kinds)
    if not pictures:
        raise DataError(
            "no pictures in this folder" if names == "*" else f"no pictures {names!r} in this folder",
            file=images,
            remedy="check the path in the config",
        )
    stems = [path.relative_to(images).with_suffix("") for path in pictures]
    return [
        Pair(str(stem), picture, (masks / stem).with_name(f"{stem.name}.png"))
        for stem, picture in zip(stems, pictures, strict=True)
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
        if isinstance(error, DataError) or machine_failed(error):
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
