# SPDX-License-Identifier: Apache-2.0
"""Files of referring expressions: objects of pictures, and what is said about them.

Three layouts:

  COCO        an object with images, annotations; every image is a sample with `expressions` (texts) and one
              annotation, and for reasoning an `answer` that explains        (the official preparation)
  references  a list or JSON lines of RefCOCO's references: `sentences` (texts, or objects with `sent`),
              `ann_id`, `split`; the objects themselves lie in a second file of COCO `instances`
  ReasonSeg   a folder with a JSON for each picture: `shapes` (polygons of the target, and of what is to be
              ignored), `text` (texts), `is_sentence`; the picture has the same name
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.errors import DataError
from data_pipelines.images import check_size
from data_pipelines.masks import segmentation_mask
from data_pipelines.records import are_numbers, need, read_json, read_records


@dataclasses.dataclass(frozen=True)
class Reference:
    """One object of a picture and the expressions that refer to it.

    Attributes:
      file: the file it came from; `record` says where in it.
      record: id or number.
      picture: name of the picture's file.
      expressions: phrases ("the red cup"), or sentences that are complete questions.
      sentences: whether they are complete questions.
      size: height and width that the object was drawn on; None if the file does not say.
      box: left, top, right, bottom in pixels; None if there is none that can be used.
      segmentation: polygons or run lengths as in COCO; None if there is only the box.
      ignored: polygons that are cut out of the object.
      answer: explains why it is this object; may be empty.
    """

    file: str
    record: str
    picture: str
    expressions: tuple[str, ...]
    sentences: bool = False
    size: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    segmentation: list | dict | None = None
    ignored: tuple[list, ...] = ()
    answer: str = ""

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"] | None:
        """The object's pixels, None if only its box is known.

        Raises:
          DataError: an outline that cannot be drawn, or of which no pixel lies in the picture.
        """
        if self.segmentation is None:
            return None
        try:
            mask = segmentation_mask(self.segmentation, height, width).astype(bool)
            if self.ignored:
                mask &= ~segmentation_mask(list(self.ignored), height, width).astype(bool)
        except DataError as error:
            raise error.at(file=self.file, record=self.record) from error
        if not mask.any():
            raise DataError(
                "no pixel of the object lies in the picture",
                file=self.file,
                record=self.record,
                field="segmentation",
                remedy="drop the record",
            )
        return mask

    def check_box(self) -> None:
        """Raises DataError if there is neither a box nor an outline."""
        if self.box is None and self.segmentation is None:
            raise DataError(
                "the object has no outline, and its box is smaller than a pixel or outside of the picture",
                file=self.file,
                record=self.record,
                field="bbox",
                remedy="repair the box or drop the record",
            )

    def check_size(self, image: NDArray[np.uint8]) -> None:
        """Raises DataError if the picture is not of the size that the object was drawn on."""
        if self.size is not None:
            check_size(image, self.size, file=self.file, record=self.record)


def read_references(path: str, *, instances: str | None = None, split: str | None = None) -> list[Reference]:
    """All references of a file or folder, in its order.

    Args:
      path: a `.json` or `.jsonl` file, or a folder in ReasonSeg's layout.
      instances: COCO file with the objects, for the layout "references".
      split: keeps the references whose `split` is this one ("train", "val", "testA", ...), for the same
        layout; None keeps all.

    Raises:
      DataError: a missing file or field, a reference to an object that the second file lacks, nothing left of
        the split, or `instances` or `split` for another layout.
    """
    if pathlib.Path(path).is_dir():
        _refuse(path, instances=instances, split=split)
        return _read_reasonseg(pathlib.Path(path))
    content: Any = read_records(path) if path.endswith(".jsonl") else read_json(path)
    if isinstance(content, dict) and "images" in content:
        _refuse(path, instances=instances, split=split)
        return _read_coco_layout(path, content)
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(
            "neither a COCO file nor a list of references",
            file=path,
            remedy="give one of the layouts in data_pipelines/refer_file.py",
        )
    if instances is None:
        raise DataError(
            "these references need the objects they speak of",
            file=path,
            remedy="set `instances` to the COCO file of the objects",
        )
    if split is not None:
        content = [record for record in content if record.get("split") == split]
    if not content:
        raise DataError(f"no reference of the split {split!r}", file=path, remedy="check `split`")
    return _read_by_id(path, content, read_coco(instances))


def _refuse(path: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise DataError(
                f"`{name}` is for lists of references, which this is not",
                file=path,
                remedy=f"leave `{name}` out, or give the references as RefCOCO has them",
            )


def _read_coco_layout(path: str, content: dict) -> list[Reference]:
    coco = read_coco(path)
    references = []
    for image_id, image in coco.images.items():
        place = {"file": path, "index": f"image {image_id}"}
        objects = _annotations(coco, image_id)
        if len(objects) != 1:
            raise DataError(
                f"{len(objects)} objects",
                file=path,
                record=place["index"],
                field="annotations",
                remedy="list the picture once for each object, under an id of its own",
            )
        answer = need(image, "answer", str, **place).strip() if "answer" in image else ""
        references.append(
            Reference(
                path,
                place["index"],
                image["file_name"],
                _texts(image, "expressions", **place),
                sentences="answer" in image,
                answer=answer,
                **_object(coco, objects[0]),
            )
        )
    return references


def _read_by_id(path: str, records: Sequence[dict], coco: CocoFile) -> list[Reference]:
    annotations = {a.get("id"): a for image_id in coco.images for a in _annotations(coco, image_id)}
    references = []
    for number, record in enumerate(records):
        place = {"file": path, "index": record.get("ref_id", number)}
        found = annotations.get(need(record, "ann_id", int, **place))
        if found is None:
            raise DataError(
                f"{record['ann_id']} is no annotation of {coco.file}",
                file=path,
                record=place["index"],
                field="ann_id",
                remedy="give the instances that the references were made for, or drop the record",
            )
        picture = coco.images[found["image_id"]]["file_name"]
        references.append(
            Reference(
                path,
                str(place["index"]),
                picture,
                _texts(record, "sentences", **place),
                **_object(coco, found),
            )
        )
    return references


def _annotations(coco: CocoFile, image_id: int) -> list[dict]:
    """All of them: an expression may speak of a crowd, and a bad box fails when its record is read."""
    return [*coco.annotations[image_id], *coco.crowds[image_id], *coco.unusable[image_id]]


def _object(coco: CocoFile, annotation: dict) -> dict[str, Any]:
    x, y, w, h = annotation["bbox"]
    unusable = any(annotation is other for other in coco.unusable[annotation["image_id"]])
    return {
        "size": coco.size(annotation["image_id"]),
        "box": None if unusable else (float(x), float(y), float(x + w), float(y + h)),
        "segmentation": annotation.get("segmentation") or None,
    }


def _read_reasonseg(folder: pathlib.Path) -> list[Reference]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError("no JSON in this folder", file=folder, remedy="check the path in the config")
    references = []
    for file in files:
        record = _loads_any(file)
        place = {"file": str(file), "index": file.stem}
        target: list[list] = []
        ignored: list[list] = []
        for shape in need(record, "shapes", list, **place):
            if not isinstance(shape, dict):
                raise DataError(
                    f"{shape!r:.60} is no shape",
                    file=file,
                    record=file.stem,
                    field="shapes",
                    remedy="give objects with `label` and `points`, or drop it",
                )
            # LISA's files mark what cannot be decided "ignore", and whole pictures without a target "flag".
            label = need(shape, "label", str, **place).lower()
            points = need(shape, "points", list, **place)
            if not all(are_numbers(point, 2) for point in points):
                raise DataError(
                    f"{points!r:.60} is not a list of points",
                    file=file,
                    record=file.stem,
                    field="points",
                    remedy="give x, y of each corner, or drop the shape",
                )
            outline = [value for point in points for value in point]
            (target if "target" in label else ignored if "ignore" in label else []).append(outline)
        if not target:
            raise DataError(
                "no shape with the label 'target'",
                file=file,
                record=file.stem,
                field="shapes",
                remedy="drop the file",
            )
        references.append(
            Reference(
                str(file),
                file.stem,
                f"{file.stem}.jpg",
                _texts(record, "text", **place),
                sentences=need(record, "is_sentence", bool, **place),
                segmentation=target,
                ignored=tuple(ignored),
            )
        )
    return references


def _loads_any(file: pathlib.Path) -> dict:
    """A JSON object in UTF-8, or in Windows' Latin as some of ReasonSeg's files are."""
    content = file.read_bytes()
    try:
        try:
            found = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError:
            found = json.loads(content.decode("cp1252"))
    except ValueError as error:
        raise DataError(f"not JSON ({error})", file=file, remedy="fetch the file again") from error
    if not isinstance(found, dict):
        raise DataError("not an object", file=file, remedy="fetch the file again")
    return found


def _texts(record: dict, field: str, *, file: str, index: str | int) -> tuple[str, ...]:
    """The expressions of a record: texts, or RefCOCO's objects with `sent`."""
    found = need(record, field, list, file=file, index=index)
    texts: list[Any] = [entry.get("sent") if isinstance(entry, dict) else entry for entry in found]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{found!r:.60} is no list of texts that say something",
            file=file,
            record=index,
            field=field,
            remedy="give at least one expression, or drop the record",
        )
    return tuple(text.strip() for text in texts)
