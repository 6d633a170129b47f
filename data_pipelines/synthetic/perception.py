# SPDX-License-Identifier: Apache-2.0
"""Examples for the decoders that see: detection, referring, segmentation, pose.

Their targets lie under the decoder's name and follow one form (n objects, a picture of h x w pixels):

  image       uint8 [h, w, 3], RGB, not normalised and not padded
  enlarge     False: the picture is not enlarged to fill the decoder's square; True if not given
  boxes       float32 [n, 4], cx cy w h divided by (w, h) of the picture
  labels      int64 [n], which link of the answer the object belongs to: 0 is the first one of its kind
  masks       bool [n, h, w]
  area        float32 [n], pixels of the mask divided by h * w
  keypoints   float32 [n, P, 2], x y divided by (w, h), in the order of the answer's keypoint links   (pose)
  visibility  int32 [n, P], as in COCO: 0 not labelled, 1 hidden, 2 visible                          (pose)
  keypoint_ids int64 [P], the number of each keypoint in COCO's list                                 (pose)

`meta["classes"]` and `meta["keypoints"]` list the names in the order of the links.
"""

from typing import Any

import numpy as np

from data_pipelines.conversation import link
from data_pipelines.synthetic.language import Built, Settings
from data_pipelines.synthetic.person import KEYPOINTS
from data_pipelines.synthetic.prompts import ANSWERS, QUESTIONS, fill
from data_pipelines.synthetic.render import Rendering, boxes_of, keypoints, render
from data_pipelines.synthetic.scene import KINDS, Scene
from data_pipelines.synthetic.words import expressions


def detect(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """Boxes and masks of all things of the classes asked for; some of those are not there."""
    seen = _seen(scene, view, settings)
    kinds = np.array([thing.kind for thing in scene.things])
    classes = _classes(set(kinds), rng, settings.names)
    targets = _objects(seen, seen.masks, np.array([classes.index(kind) for kind in kinds]))
    return _built("det", rng, settings, [", ".join(classes)], [(classes, "det")], targets)


def refer(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """The one thing that an expression fits."""
    seen = _seen(scene, view, settings)
    number = int(rng.integers(len(scene.things)))
    phrases = expressions(scene, number)
    if not phrases or not seen.masks[number].any():
        return None
    phrase = phrases[rng.integers(len(phrases))]
    targets = _objects(seen, seen.masks[number : number + 1], np.zeros(1, np.int64))
    return _built("grd", rng, settings, [phrase], [([phrase], "grd")], targets, {"expression": phrase})


def segment(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """One mask for each class that is there: the union of its things."""
    seen = _seen(scene, view, settings)
    kinds = np.array([thing.kind for thing in scene.things])
    present = sorted(set(kinds))
    classes = _classes(set(kinds), rng, settings.names)
    masks = np.stack([seen.masks[kinds == kind].any(0) for kind in present])
    targets = _objects(seen, masks, np.array([classes.index(kind) for kind in present]))
    return _built("seg", rng, settings, [", ".join(classes)], [(classes, "seg")], targets)


def pose(scene: Scene, view: Rendering, rng: np.random.Generator, settings: Settings) -> Built | None:
    """Boxes and keypoints of people: as many keypoints as may be asked for, or fewer, shuffled."""
    people = [i for i, thing in enumerate(scene.things) if thing.kind == "person"]
    seen = _seen(scene, view, settings)
    people = [i for i in people if seen.masks[i].any()]
    if not people:
        return None
    most = min(len(KEYPOINTS), settings.names)
    count = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
    order = rng.permutation(len(KEYPOINTS))[:count]
    names = [KEYPOINTS[i] for i in order]
    points, visibility = zip(*(keypoints(scene, i, seen) for i in people), strict=True)
    height, width = seen.image.shape[:2]
    targets = _objects(seen, seen.masks[people], np.zeros(len(people), np.int64))
    targets["keypoints"] = (np.stack(points)[:, order] / (width, height)).astype(np.float32)
    targets["visibility"] = np.stack(visibility)[:, order]
    targets["keypoint_ids"] = order
    slots, links = ["person", ", ".join(names)], [(["person"], "det"), (names, "pose")]
    return _built("pose", rng, settings, slots, links, targets, {"keypoints": names})


def _seen(scene: Scene, view: Rendering, settings: Settings) -> Rendering:
    """The picture of the decoder: the tower's own where both have one size."""
    same = min(view.image.shape[:2]) == settings.decoder_size
    return view if same else render(scene, settings.decoder_size)


def _classes(present: set[str], rng: np.random.Generator, most: int) -> list[str]:
    """Class names to ask for, shuffled: those that are there, and others, half the time up to `most`."""
    absent = [kind for kind in KINDS if kind not in present]
    room, fill_up = max(0, min(len(absent), most - len(present))), rng.random() < 0.5
    if fill_up and room == len(absent):
        chosen = [*present, *absent]
    else:
        others = rng.permutation(absent)
        chosen = [*present, *others[: room if fill_up else int(rng.integers(0, room + 1))]]
    return [str(kind) for kind in rng.permutation(sorted(chosen))]


def _objects(view: Rendering, masks: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The common part of the targets; things of which no pixel is visible are left out."""
    height, width = view.image.shape[:2]
    visible = masks.any((1, 2))
    masks, corners = masks[visible], boxes_of(masks[visible])
    x0, y0, x1, y1 = corners.T
    boxes = np.stack(
        [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], 1
    )
    return {
        "image": view.image,
        "boxes": boxes.astype(np.float32),
        "labels": labels[visible].astype(np.int64),
        "masks": masks,
        "area": masks.mean((1, 2), dtype=np.float32),
    }


def _built(
    task: str,
    rng: np.random.Generator,
    settings: Settings,
    slots: list[str],
    links: list[tuple[list[str], str]],
    targets: dict[str, Any],
    meta: dict[str, Any] | None = None,
) -> Built:
    """Question and answer, their slots filled (links in the answer's), and the decoder's targets."""
    lists = [", ".join(link(name, token, settings.counts) for name in names) for names, token in links]
    turns = [("human", fill(QUESTIONS[task], rng, *slots)), ("gpt", fill(ANSWERS[task], rng, *lists))]
    decoder = "unipose" if task == "pose" else "grounding_dino"
    return Built(turns, targets={decoder: targets}, meta={"classes": links[0][0], **(meta or {})})
