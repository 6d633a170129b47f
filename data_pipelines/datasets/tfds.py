# SPDX-License-Identifier: Apache-2.0
"""Reads a prepared TFDS dataset through `as_data_source`: random access, no TensorFlow.

The dataset has to be in array records and to hold, as `datasets/synthetic_tfds.py` writes them:

  id            text                                               (left out: the index)
  image         picture [h, w, 3]
  conversation  sequence of {role: "human" | "gpt", text}, `<image>` and `<region>` in their places
  regions       sequence of pictures [h, w, 1], non-zero inside   (left out: none)
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling
from data_pipelines.masks import resize_masks


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Random access to the records of one split."""

    file: str
    records: Any  # tfds' data source: `len` and `[i]`
    tiling: Tiling

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Record `index`.

        Raises:
          DataError: regions that do not have the shape of the image.
        """
        record = self.records[index]
        image, conversation = np.asarray(record["image"]), record["conversation"]
        turns = [
            (_text(role), _text(text))
            for role, text in zip(conversation["role"], conversation["text"], strict=True)
        ]
        name = _text(record["id"]) if "id" in record else str(index)
        masks = [np.asarray(mask) for mask in record.get("regions", ())]
        if any(mask.shape != (*image.shape[:2], 1) for mask in masks):
            raise DataError(
                f"regions of shapes {[mask.shape for mask in masks]} on an image of {image.shape}",
                file=self.file,
                record=name,
                field="regions",
                remedy="store masks in the frame of the image",
            )
        regions = no_regions(self.tiling.size)
        if masks:
            regions = resize_masks((np.stack(masks)[..., 0] > 0).astype(np.uint8), self.tiling.size)
        return Example(
            source="tfds",
            file=self.file,
            record=name,
            turns=turns,
            images=[self.tiling(image)],
            regions=regions,
            region_images=np.zeros(len(regions), np.int32),
            meta={"answers": [text for role, text in turns if role == "gpt"]},
        )


def load(
    *, folder: str, tile_size: int, split: str = "train", image_mode: Mode = "anyres", max_tiles: int = 4
) -> TfdsSource:
    """Opens one split of a prepared dataset.

    Args:
      folder: the version's folder, for example `DIR/vllm2_synthetic/chat_easy/1.0.0`.
      tile_size: side of a tile in pixels.
      split: any split that TFDS understands, also `train[:10%]`.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.

    Raises:
      DataError: no dataset there, no such split, a file format without random access, or fields missing.
    """
    if not (pathlib.Path(folder) / "dataset_info.json").is_file():
        raise DataError(
            "no prepared TFDS dataset here (dataset_info.json is missing)",
            file=folder,
            remedy="give the version's folder, for example DIR/vllm2_synthetic/chat_easy/1.0.0",
        )
    builder = tfds.builder_from_directory(folder)
    missing = [field for field in ("image", "conversation") if field not in builder.info.features]
    if missing:
        raise DataError(
            f"the dataset has no field {' or '.join(missing)}",
            file=folder,
            field=missing[0],
            remedy="build it with the features of data_pipelines/datasets/synthetic_tfds.py",
        )
    try:
        records = builder.as_data_source(split=split)
    except (ValueError, NotImplementedError) as error:
        raise DataError(
            f"cannot read the split {split!r}: {error}",
            file=folder,
            field="split",
            remedy=f"use one of {', '.join(builder.info.splits)}, in a dataset built with array records",
        ) from error
    return TfdsSource(folder, records, Tiling(image_mode, tile_size, max_tiles).for_regions)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
