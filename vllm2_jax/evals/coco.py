# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision of boxes, masks and keypoints, and its result format.

pycocotools does the matching and the curves, with its own defaults: 100 detections a picture for boxes and
masks (the official decoders return 100 at most), 20 for keypoints.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vllm2_jax.evals.metric import Metric
from vllm2_jax.evals.objects import Detections, GroundTruth

Kind = Literal["bbox", "segm", "keypoints"]
Record = tuple[Detections, GroundTruth]

# What COCOeval puts into its statistics, in its order.
_BOX_VALUES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_KEYPOINT_VALUES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def coco(kind: Kind, name: str) -> Metric:
    """The metric for objects of one kind; its values are `<name>/AP`, `<name>/AP50` and so on, 0 to 1."""
    return Metric(
        record=lambda found, truth: (found, truth),
        summarise=lambda records: values(evaluator(records, kind), name),
    )


def evaluator(
    records: Sequence[Record], kind: Kind, *, sigmas: Float[np.ndarray, " P"] | None = None
) -> COCOeval:
    """COCO's evaluator with all pictures matched; picture i + 1 is record i.

    Args:
      records: detections and truth of each picture.
      kind: what is compared.
      sigmas: spread of each keypoint around its truth; None takes those of COCO's 17. Further keypoints
        do not count.
    """
    points = 17 if sigmas is None else len(sigmas)
    # Classes that no picture has define no precision, so those of the truth are all that count.
    labels = {label for _, truth in records for label in truth.labels.tolist()}
    ids = {label: number for number, label in enumerate(sorted(labels), start=1)}
    truths, found = [], []
    for number, (detections, truth) in enumerate(records, start=1):
        truths += [{**entry, "image_id": number} for entry in _truths(truth, kind, ids, points)]
        found += [{**entry, "image_id": number} for entry in _found(detections, kind, ids, points)]
    images = [
        {"id": number, "height": truth.size[0], "width": truth.size[1]}
        for number, (_, truth) in enumerate(records, start=1)
    ]
    categories = [{"id": number} for number in ids.values()]
    with contextlib.redirect_stdout(io.StringIO()):
        made = COCOeval(_index(images, truths, categories), _index(images, found, categories), kind)
        if sigmas is not None:
            made.params.kpt_oks_sigmas = sigmas
        made.evaluate()
    return made


def values(made: COCOeval, name: str) -> dict[str, float]:
    """The usual values of an evaluator; those without any object of their size are left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        made.accumulate()
        made.summarize()
    names = _KEYPOINT_VALUES if made.params.iouType == "keypoints" else _BOX_VALUES
    return {
        f"{name}/{key}": float(value)
        for key, value in zip(names, made.stats, strict=True)
        if value >= 0  # COCO writes -1 where there is nothing to average
    }


def results(
    detections: Detections, image_id: int | str, categories: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """One picture's detections in COCO's result format, ready for `json.dump`.

    Args:
      detections: of the picture.
      image_id: of the picture in its dataset.
      categories: label -> category id of the dataset.
    """
    made = []
    for i, (box, score) in enumerate(zip(detections.boxes, detections.scores, strict=True)):
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": categories[detections.labels[i].item()],
            "bbox": _corner_and_size(box),
            "score": float(score),
        }
        if detections.masks is not None:
            mask = detections.masks[i]
            entry["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
        if detections.keypoints is not None:
            entry["keypoints"] = _flat(detections.keypoints[i])
        made.append(entry)
    return made


def _index(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    made = COCO()
    # Ids start at 1: COCOeval takes a match with id 0 for no match.
    numbered = [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)]
    made.dataset = {"images": images, "annotations": numbered, "categories": categories}
    made.createIndex()
    return made


def _truths(truth: GroundTruth, kind: Kind, ids: Mapping[Any, int], count: int) -> list[dict[str, Any]]:
    made = []
    for i, (box, area, crowd) in enumerate(zip(truth.boxes, truth.areas, truth.crowds, strict=True)):
        entry = {
            "category_id": ids[truth.labels[i].item()],
            "bbox": _corner_and_size(box),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        if kind == "segm":
            entry["segmentation"] = _need(truth.masks, "masks")[i]
        if kind == "keypoints":
            points = _need(truth.keypoints, "keypoints")[i, :count]
            entry["keypoints"] = points.astype(float).ravel().tolist()
            entry["num_keypoints"] = int((points[:, 2] > 0).sum())
        made.append(entry)
    return made


def _found(detections: Detections, kind: Kind, ids: Mapping[Any, int], count: int) -> list[dict[str, Any]]:
    made = []
    for i, box in enumerate(detections.boxes):
        if (label := detections.labels[i].item()) not in ids:
            continue
        x, y, width, height = _corner_and_size(box)
        entry = {
            "category_id": ids[label],
            "score": float(detections.scores[i]),
            "bbox": [x, y, width, height],
            "area": width * height,
        }
        # The size of what is compared decides whether an unmatched detection counts as small or large.
        if kind == "segm":
            mask = _need(detections.masks, "masks")[i]
            entry |= {"segmentation": mask, "area": float(coco_mask.area(mask))}
        if kind == "keypoints":
            points = _need(detections.keypoints, "keypoints")[i, :count]
            entry |= {"keypoints": _flat(points), "area": float(np.ptp(points, axis=0).prod())}
        made.append(entry)
    return made


def _need(field: Any, name: str) -> Any:
    if field is None:
        raise ValueError(f"this metric compares {name}, and a prediction or its truth has none")
    return field


def _corner_and_size(box: Float[np.ndarray, " 4"]) -> list[float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _flat(points: Float[np.ndarray, "P 2"]) -> list[float]:
    """x, y, 1 of every point: no decoder says how sure it is of a single point."""
    return np.insert(points.astype(float), 2, 1.0, axis=1).ravel().tolist()
