# SPDX-License-Identifier: Apache-2.0
"""Poses: COCO, Human-Art, CrowdPose, AP-10K, MacaquePose, 300W, Animal Kingdom and others in COCO's layout.

A question lists classes and keypoints; the answer has a link for each. The option `keypoints` says which list
a file's numbers are in: a key of `keypoint_sets.SETS`, or "file" for the list that its categories bring.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.augment import LONGEST, Annotated
from data_pipelines.coco_file import CocoFile, read_coco
from data_pipelines.conversation import IMAGE_MARK, link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Mode
from data_pipelines.keypoint_sets import MOST, SETS, KeypointSet, clean, distinct, named
from data_pipelines.templates import load_templates, pick
from data_pipelines.viewing import Viewing, make_viewing, read_picture
from vllm2_jax.tokens import QueryCounts

# How many classes a question of training has where a file has several (official `unikpt_llava.py`).
_ALL_CLASSES, _ABSENT_CLASSES = 0.2, 5
_ALL_POINTS = 0.5


@dataclasses.dataclass(frozen=True)
class KeypointSource:
    """Random access to pictures; the objects with a labelled keypoint are what a question asks about.

    `classes` gives each category id the name that questions use; file names begin with `prefix`, which the
    folder does not have.
    """

    coco: CocoFile
    classes: dict[int, str]
    image_ids: list[int]
    image_root: pathlib.Path
    prefix: str
    viewing: Viewing
    points: KeypointSet
    flips: float
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        """Picture `index`.

        Raises:
          DataError: a missing picture, one of another size than the file says, an unknown category, or an
            object with another number of keypoints than the list has.
        """
        image_id, rng, counts = self.image_ids[index], self.viewing.rng(index), self.viewing.counts
        record, name = f"image {image_id}", self.coco.images[image_id]["file_name"]
        image = read_picture(
            self.image_root / name.removeprefix(self.prefix), record=record, field="file_name"
        )
        self.coco.check_size(image_id, image)
        objects = [a for a in self.coco.annotations[image_id] if labelled(a)]
        mirror = self.points.mirror
        whole = self._annotated(image, objects)
        view = self.viewing.view(whole, rng, flips=self.flips if mirror else 0.0, swap=mirror)

        names = [self._class_of(a) for a in objects]
        classes = _ask_classes(list(self.classes.values()), set(names), rng)
        order = _ask_points(len(self.points.names), rng)
        asked = [self.points.names[i] for i in order]
        targets = view.targets(np.array([classes.index(names[i]) for i in view.kept], np.int64))
        targets["keypoints"] = targets["keypoints"][:, order]
        targets["visibility"] = targets["visibility"][:, order]
        targets["keypoint_ids"] = np.array(order, np.int64)
        meta: dict[str, Any] = {"classes": classes, "keypoints": asked, "image_id": image_id}
        if rng is None:
            meta["truth"] = self._truth(image_id)
        question = _fill(pick(self.questions, rng), classes, asked)
        answer = _fill(
            pick(self.answers, rng),
            [link(name, "det", counts) for name in classes],
            [link(name, "pose", counts) for name in asked],
        )
        return Example(
            source="keypoints",
            file=self.coco.file,
            record=record,
            turns=[("human", f"{IMAGE_MARK}\n{question}"), ("gpt", answer)],
            images=[self.viewing.tiles(image, view)],
            targets={"unipose": targets},
            meta=meta,
        )

    def _annotated(self, image: np.ndarray, objects: list[dict]) -> Annotated:
        """The picture and its objects as training wants them: boxes cut at the border, nothing outside."""
        height, width = image.shape[:2]
        border = np.array([width, height, width, height], np.float32)
        boxes = _corners(objects).clip(0, border).astype(np.float32)
        points = self._points_of(objects).astype(np.float32)
        x, y, visibility = np.moveaxis(points, -1, 0)
        # A place outside of the picture can be annotated but not predicted: points are shares of it.
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (visibility > 0)
        keypoints = np.where(inside[..., None], points, 0)
        sides = boxes[:, 2:] - boxes[:, :2]
        given = np.array([float(a.get("area") or 0) for a in objects], np.float32)
        # CrowdPose gives no area; keypoints are compared in units of its root, so it may not be 0.
        area = np.where(given > 0, given, sides.prod(1)).astype(np.float32)
        return Annotated(image, boxes, None, keypoints, area, np.arange(len(objects)))

    def _truth(self, image_id: int) -> dict[str, Any]:
        """All objects as annotated, those without keypoints and crowds too, as `launch.truth` takes them."""
        objects, crowds = self.coco.annotations[image_id], self.coco.crowds[image_id]
        every = [*objects, *crowds]
        areas = [a.get("area") for a in every]
        return {
            "size": self.coco.size(image_id),
            "boxes": _corners(every),
            "labels": [self._class_of(a) for a in every],
            "keypoints": self._points_of(every),
            "area": None if None in areas else np.array(areas, np.float64),
            "crowd": np.arange(len(every)) >= len(objects),
            "crowd_index": float(self.coco.images[image_id].get("crowdIndex", 0.0)),
        }

    def _points_of(self, objects: list[dict]) -> Float[np.ndarray, "n P 3"]:
        """x, y, visibility as annotated; zeros for objects that have none."""
        count = len(self.points.names)
        found = np.zeros((len(objects), count, 3))
        for points, annotation in zip(found, objects, strict=True):
            given = annotation.get("keypoints") or np.zeros(3 * count)
            if len(given) != 3 * count:
                raise DataError(
                    f"{len(given)} numbers where {count} keypoints have {3 * count}",
                    file=self.coco.file,
                    record=f"annotation {annotation.get('id', '?')}",
                    field="keypoints",
                    remedy="set the option `keypoints` to the set with this many points, or drop the record",
                )
            if not all(isinstance(value, int | float) for value in given):
                raise DataError(
                    "not all are numbers",
                    file=self.coco.file,
                    record=f"annotation {annotation.get('id', '?')}",
                    field="keypoints",
                    remedy="give x, y, visibility of each keypoint (zeros where it is unknown)",
                )
            points[:] = np.reshape(given, (count, 3))
            points[:, 2] = points[:, 2].clip(0, 2)
            points[~np.isfinite(points).all(1)] = 0
        return found

    def _class_of(self, annotation: dict) -> str:
        category = annotation.get("category_id")
        if category not in self.coco.categories:
            raise DataError(
                f"{category} is none of the file's categories",
                file=self.coco.file,
                record=f"annotation {annotation.get('id', '?')}",
                field="category_id",
                remedy="add the category or drop the annotation",
            )
        return self.classes[category]


def labelled(annotation: dict) -> bool:
    """Whether an object has a keypoint with a label, whatever its `num_keypoints` says."""
    visibility = annotation.get("keypoints", ())[2::3]
    return any(isinstance(v, int | float) and v > 0 for v in visibility)


def load(
    *,
    annotations: str,
    image_root: str,
    tile_size: int,
    prefix: str = "",
    keypoints: str = "coco",
    every_class: bool = True,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    decoder_size: int = LONGEST,
    augment: bool = True,
    flips: float = 0.5,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    templates: str | None = None,
    seed: int = 0,
    test: bool = False,
) -> KeypointSource:
    """Opens a file of keypoints in COCO's layout.

    Args:
      annotations: the file.
      image_root: folder of the pictures.
      tile_size: side of a tile in pixels.
      prefix: what the file names begin with and the folder does not have ("HumanArt/images/").
      keypoints: a key of `keypoint_sets.SETS`, or "file": names from the categories, which have to agree.
      every_class: False leaves out the classes that no object of the file has: a few pictures of AP-10K list
        all of its 54.
      image_mode, max_tiles: see `data_pipelines.images.Tiling`.
      decoder_size: longest side of the decoder's picture, pixels; the task's `capacities.size` or less.
      augment: random views in training, see `viewing.make_viewing`.
      flips: chance of a mirrored picture in training, for lists whose mirror image is known.
      counts: queries of a link; must be those of the model.
      templates: JSON file with wordings of one's own (keys "pose", "posed").
      seed: of everything random, together with the index.
      test: all pictures as they are, all classes and keypoints in the file's order, the first wording, and
        the truth in `meta`. In training: pictures with a labelled keypoint, in random views; all classes of
        the file for every fifth picture, else those that are there and a few that are not; all keypoints half
        of the time, else some; shuffled.

    Raises:
      DataError: a missing or malformed file; no keypoints in it; a list that is not the file's.
    """
    coco = read_coco(annotations)
    points = _points(coco, keypoints)
    image_ids = [i for i, group in coco.annotations.items() if test or any(map(labelled, group))]
    if not any(labelled(a) for group in coco.annotations.values() for a in group):
        raise DataError(
            "no annotation has a labelled keypoint",
            file=annotations,
            field="keypoints",
            remedy="take the file of keypoints, such as person_keypoints_train2017.json",
        )
    names = dict(zip(coco.categories, distinct(list(coco.categories.values())), strict=True))
    if not every_class:
        used = {a.get("category_id") for group in coco.annotations.values() for a in group}
        used |= {a.get("category_id") for group in coco.crowds.values() for a in group}
        names = {category: name for category, name in names.items() if category in used}
    viewing = make_viewing(
        tile_size=tile_size,
        image_mode=image_mode,
        max_tiles=max_tiles,
        decoder_size=decoder_size,
        augment=augment,
        counts=counts,
        seed=seed,
        test=test,
    )
    return KeypointSource(
        coco,
        names,
        image_ids,
        pathlib.Path(image_root),
        prefix,
        viewing,
        points,
        flips,
        load_templates("pose", templates),
        load_templates("posed", templates),
    )


def _points(coco: CocoFile, key: str) -> KeypointSet:
    """The list of keypoints that a file's numbers are in."""
    if key in SETS:
        points = SETS[key]
        for category, names in coco.keypoints.items():
            # Spellings differ, and Human-Art lists more than it annotates; but one name in two places means
            # that the file has another order.
            for place, name in enumerate(map(clean, names)):
                if name in points.names and points.names.index(name) != place:
                    raise DataError(
                        f"keypoint {place} is {name!r}, in the set {key!r} that is number "
                        f"{points.names.index(name)}",
                        file=coco.file,
                        record=f"category {category}",
                        field="keypoints",
                        remedy='set the option `keypoints` to the set of this file, or to "file"',
                    )
        return points
    if key != "file":
        raise ValueError(f"unknown keypoints {key!r}, there are file, {', '.join(SETS)}")
    lists = {tuple(coco.keypoints.get(category, ())) for category in coco.categories}
    if len(lists) != 1 or not any(lists):
        raise DataError(
            f"the categories have {len(lists)} different lists of keypoints"
            if len(lists) > 1
            else "no names",
            file=coco.file,
            record="categories",
            field="keypoints",
            remedy="set the option `keypoints` to the name of a set, or repair the categories",
        )
    points = named(lists.pop())
    if len(points.names) > MOST:
        raise DataError(
            f"{len(points.names)} keypoints, the decoder knows {MOST}",
            file=coco.file,
            record="categories",
            field="keypoints",
            remedy="split the file",
        )
    return points


def _ask_classes(every: list[str], present: set[str], rng: np.random.Generator | None) -> list[str]:
    """Names to ask for: all at a test."""
    if rng is None:
        return every
    if len(every) > 1 and rng.random() >= _ALL_CLASSES:
        absent = [name for name in every if name not in present]
        least = 0 if present else 1
        count = int(rng.integers(least, max(least, min(len(every), _ABSENT_CLASSES)) + 1))
        every = [*sorted(present), *(absent[i] for i in rng.permutation(len(absent))[:count])]
    return [every[i] for i in rng.permutation(len(every))]


def _ask_points(count: int, rng: np.random.Generator | None) -> list[int]:
    """Which keypoints to ask for: all at a test."""
    if rng is None:
        return list(range(count))
    asked = count if rng.random() < _ALL_POINTS else int(rng.integers(1, count + 1))
    return [int(i) for i in rng.permutation(count)[:asked]]


def _corners(objects: list[dict]) -> Float[np.ndarray, "n 4"]:
    """Left, top, right, bottom as annotated."""
    boxes = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _fill(wording: str, classes: list[str], keypoints: list[str]) -> str:
    return wording.replace("{classes}", ", ".join(classes)).replace("{keypoints}", ", ".join(keypoints))
