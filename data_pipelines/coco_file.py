# SPDX-License-Identifier: Apache-2.0
"""Reads COCO annotation files: pictures, annotations, categories."""

import dataclasses
import urllib.parse
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines.errors import DataError
from data_pipelines.images import check_size
from data_pipelines.masks import box_in_tile, resize_masks, segmentation_mask
from data_pipelines.records import need, need_box, read_json


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """A COCO file, indexed.

    Attributes:
      file: its path.
      images: picture id -> {"file_name", "height", "width", ...}.
      annotations: picture id -> its annotations that have a usable box, in the order of the file.
      categories: category id -> name, in the order of the file; empty for captions.
      crowds: picture id -> its annotations of crowds that have a usable box.
      keypoints: category id -> names of its keypoints, for categories that list some.
      unusable: picture id -> the annotations without a usable box. Detection does not learn them; its
        evaluation knows them.
    """

    file: str
    images: dict[int, dict]
    annotations: dict[int, list[dict]]
    categories: dict[int, str]
    crowds: dict[int, list[dict]] = dataclasses.field(default_factory=dict)
    keypoints: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    unusable: dict[int, list[dict]] = dataclasses.field(default_factory=dict)

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width that the file gives for a picture."""
        place = {"file": self.file, "index": f"image {image_id}"}
        image = self.images[image_id]
        return need(image, "height", int, **place), need(image, "width", int, **place)

    def check_size(self, image_id: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Raises DataError if the decoded picture has another size than the annotations were drawn on."""
        check_size(image, self.size(image_id), file=self.file, record=f"image {image_id}")

    def region(self, annotation: dict, form: str, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
        """An annotation's box or mask in the stretched S x S tile.

        Args:
          annotation: one of `annotations`.
          form: "box" or "mask".
          size: S.

        Raises:
          DataError: no `segmentation` for a mask, a malformed one, or nothing left of it at this size.
        """
        height, width = self.size(annotation["image_id"])
        record = f"annotation {annotation.get('id', '?')}"
        if form == "box":
            x, y, w, h = annotation["bbox"]
            return box_in_tile((x, y, x + w, y + h), height, width, size)
        segmentation = need(annotation, "segmentation", (list, dict), file=self.file, index=record)
        return mask_in_tile(segmentation, height, width, size, file=self.file, index=record)


def read_coco(file: str) -> CocoFile:
    """Reads a COCO file.

    Annotations that detection drops are kept apart: crowds and what is marked `ignore`; boxes outside the
    picture, with a side below one pixel, or of an area that is not above 0. LVIS gives `coco_url` in place of
    `file_name`; its path counts.

    Raises:
      DataError: a missing file or field, or an annotation of a picture that the file does not list.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError("not a COCO file", file=file, remedy="give an object with images and annotations")
    entries = {
        key: need(content, key, list, file=file, index="top level") for key in ("images", "annotations")
    }
    images = {}
    for number, image in enumerate(entries["images"]):
        if "coco_url" in image and "file_name" not in image:
            image["file_name"] = urllib.parse.urlparse(image["coco_url"]).path.lstrip("/")
        need(image, "file_name", str, file=file, index=f"image {number}")
        images[need(image, "id", int, file=file, index=f"image {number}")] = image
    annotations: dict[int, list[dict]] = {image_id: [] for image_id in images}
    crowds: dict[int, list[dict]] = {image_id: [] for image_id in images}
    unusable: dict[int, list[dict]] = {image_id: [] for image_id in images}
    for number, annotation in enumerate(entries["annotations"]):
        place = {"file": file, "index": f"annotation {annotation.get('id', number)}"}
        image_id = need(annotation, "image_id", int, **place)
        if image_id not in images:
            raise DataError(
                f"picture {image_id} is not among the file's images",
                file=file,
                record=place["index"],
                field="image_id",
                remedy="add the picture or drop the annotation",
            )
        for field in ("area", "keypoints"):  # null says as much as a field that is missing
            if field in annotation and annotation[field] is None:
                del annotation[field]
        area = need(annotation, "area", (int, float), **place) if "area" in annotation else 1
        if not _usable(need_box(annotation, "bbox", **place), images[image_id]) or area <= 0:
            unusable[image_id].append(annotation)
        elif annotation.get("iscrowd", 0) or annotation.get("ignore", 0):
            crowds[image_id].append(annotation)
        else:
            annotations[image_id].append(annotation)
    categories, keypoints = {}, {}
    for number, category in enumerate(content.get("categories", [])):
        place = {"file": file, "index": f"category {number}"}
        category_id = need(category, "id", int, **place)
        categories[category_id] = need(category, "name", str, **place)
        if category.get("keypoints"):
            keypoints[category_id] = need(category, "keypoints", list, **place)
    return CocoFile(file, images, annotations, categories, crowds, keypoints, unusable)


def mask_in_tile(
    segmentation: list | dict, height: int, width: int, size: int, *, file: str, index: str
) -> UInt8[np.ndarray, "{size} {size}"]:
    """A COCO segmentation stretched to S x S.

    Raises:
      DataError: with file and record; also if the mask is empty at this size.
    """
    try:
        mask = resize_masks(segmentation_mask(segmentation, height, width)[None], size)[0]
    except DataError as error:
        raise error.at(file=file, record=index) from error
    if not mask.any():
        raise DataError(
            f"the mask is empty at {size} x {size} pixels",
            file=file,
            record=index,
            field="segmentation",
            remedy="drop the annotation",
        )
    return mask


def _usable(box: Sequence[float | int], image: dict) -> bool:
    x, y, w, h = box
    if w < 1 or h < 1:
        return False
    inside_w = min(x + w, image.get("width", np.inf)) - max(x, 0)
    inside_h = min(y + h, image.get("height", np.inf)) - max(y, 0)
    return inside_w > 0 and inside_h > 0
