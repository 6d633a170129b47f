# SPDX-License-Identifier: Apache-2.0
"""What every dataset yields: pictures, a conversation, regions and the targets of a decoder."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8


def no_regions(size: int = 1) -> UInt8[np.ndarray, "0 S S"]:
    """The masks of an example without regions."""
    return np.zeros((0, size, size), np.uint8)


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample of one dataset, before tokenisation and padding.

    Attributes:
      source: name of the dataset, a key of `data_pipelines.DATASETS`.
      file: annotation file the sample came from; with `record` it places an error.
      record: id or index of the sample in `file`.
      turns: ("human" | "gpt", text) in order. The text holds one `<image>` a picture, one `<region>` a
        region and the links as `conversation.link` writes them.
      images: a picture is its tiles [T, S, S, 3], RGB 0..255, the whole picture last; empty for text only.
      regions: [n, S, S], 1 inside; in the stretched frame of the last tile of their picture.
      region_images: [n], the picture (index into `images`) each region lies on.
      targets: what a decoder learns from (boxes, masks, an output picture), numpy, keyed as that decoder
        expects; empty for chat.
      meta: what evaluation needs back (question id, answers, sizes); never used in training.
    """

    source: str
    file: str
    record: str
    turns: list[tuple[str, str]]
    images: list[UInt8[np.ndarray, "T S S 3"]] = dataclasses.field(default_factory=list)
    regions: UInt8[np.ndarray, "n S S"] = dataclasses.field(default_factory=no_regions)
    region_images: Int[np.ndarray, " n"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
