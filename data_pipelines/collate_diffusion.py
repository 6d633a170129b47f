# SPDX-License-Identifier: Apache-2.0
"""Targets of the decoders that paint, as arrays of static shape: square pictures and caption ids.

Pictures of generation are padded with white to a square, those of editing lose what is outside of their
central square. Bilinear filter, no flips; uint8, the decoder scales them to [-1, 1]. Names and shapes are
those of `example` in `vllm2_jax/decoders/diffusion/targets.py`. Source: official `datasets/text2img.py`,
`datasets/ip2p.py`.

`TaskShape.capacities` of a task:

  size        side of the pictures in pixels; the decoder's `size`
  caption     ids of a caption; the text encoder's `length`
  tokenizer   of the text encoder, see `caption_tokenizer`; the small one that ships if not given
  moments, caption_states   shapes of a record's arrays, for datasets that are `encoded`: they are given to
              the decoder instead of pictures and ids
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.caption_tokenizer import load_caption_tokenizer
from data_pipelines.errors import DataError
from data_pipelines.images import pad_square

if TYPE_CHECKING:
    from data_pipelines.collate import TaskShape

Targets = Mapping[str, Any]
Arrays = dict[str, np.ndarray]

WHITE = (255, 255, 255)


def stable_diffusion(targets: Targets | None, shape: "TaskShape") -> tuple[Arrays, int]:
    """The picture to make, and its caption.

    Args:
      targets: of one example: `image` [h, w, 3] uint8, and `caption`, a text or None; None for a row of
        padding.
      shape: capacities of the task.

    Returns:
      The arrays. Nothing is ever left out: a caption that is too long loses its end.

    Raises:
      DataError: no picture, or one that is no uint8 RGB.
    """
    if "moments" in shape.capacities:
        return _encoded(targets, shape, ("moments",)), 0
    size = _capacity(shape, "size")
    arrays = {"image": np.zeros((size, size, 3), np.uint8), **_caption(targets, shape)}
    if targets is not None:
        arrays["image"][:] = central_square(pad_square(_picture(targets, "image"), WHITE), size)
    return arrays, 0


def instruct_pix2pix(targets: Targets | None, shape: "TaskShape") -> tuple[Arrays, int]:
    """The picture to edit, the picture to make, and the instruction; as `stable_diffusion`, with `input`.

    Raises:
      DataError: as above, or pictures of different sizes, which would be cut differently.
    """
    if "moments" in shape.capacities:
        return _encoded(targets, shape, ("moments", "input_moments")), 0
    size = _capacity(shape, "size")
    names = ("input", "image")
    arrays = {name: np.zeros((size, size, 3), np.uint8) for name in names} | _caption(targets, shape)
    if targets is not None:
        before, after = (_picture(targets, name) for name in names)
        if abs(before.shape[0] * after.shape[1] - before.shape[1] * after.shape[0]) > sum(after.shape[:2]):
            raise DataError(
                f"the pictures before and after the edit are {before.shape[:2]} and {after.shape[:2]}: of "
                "different shape",
                field="input",
                remedy="drop the record",
            )
        for name, picture in zip(names, (before, after), strict=True):
            arrays[name][:] = central_square(picture, size)
    return arrays, 0


def central_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The shorter side resized to `size`, the middle of the longer one."""
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    if image.shape[:2] != (height, width):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def _caption(targets: Targets | None, shape: "TaskShape") -> Arrays:
    tokenize = load_caption_tokenizer(shape.capacities.get("tokenizer", ""))
    text = None if targets is None else targets.get("caption")
    return {
        "caption": tokenize(text or "", _capacity(shape, "caption")),
        "has_caption": np.array(text is not None),
    }


def _encoded(targets: Targets | None, shape: "TaskShape", names: tuple[str, ...]) -> Arrays:
    """What encoders made of pictures and caption, instead of those."""
    sizes = {name: _capacity(shape, "moments") for name in names}
    sizes["caption_states"] = _capacity(shape, "caption_states")
    arrays = {name: np.zeros(size, np.float16) for name, size in sizes.items()}
    if targets is None:
        return arrays | {"has_caption": np.array(False)}
    for name, array in arrays.items():
        found = targets.get(name)
        if found is None or found.shape != array.shape:
            raise DataError(
                f"{'nothing' if found is None else found.shape} where there is room for {array.shape}",
                field=name,
                remedy="give the dataset its folder as `encoded`, and the capacities that launch.encode said",
            )
        array[:] = found
    return arrays | {"has_caption": np.array(True)}


def _picture(targets: Targets, name: str) -> UInt8[np.ndarray, "h w 3"]:
    image = targets.get(name)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.shape[2:] != (3,)
        or not image.size
    ):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(
            f"{found} is no picture", field=name, remedy="load pictures with data_pipelines.images.load_image"
        )
    return image


def _capacity(shape: "TaskShape", name: str) -> Any:
    if name not in shape.capacities:
        raise DataError(
            f"the task does not say the {name} that its decoder takes",
            field=f"capacities.{name}",
            remedy="give it in the mixture, equal to the decoder's config",
        )
    return shape.capacities[name]
