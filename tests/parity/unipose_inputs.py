# SPDX-License-Identifier: Apache-2.0
"""The inputs of the pose decoder from a golden folder, in our form.

Official targets list keypoints by their number in the dataset; ours follow the order of the prompt, so that
nothing has to be permuted inside the model. Places for objects, classes and keypoints are one more than
needed: padding must not matter.
"""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.parity import goldens
from vllm2_jax.batch import Links
from vllm2_jax.decoders.denoising import Draws, Layout

BODY_POINTS = 68


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture: its prompt (dataset numbers in prompt order) and its objects in the official form."""

    classes: list[int]
    keypoints: list[int]
    labels: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    area: np.ndarray

    def without_objects(self) -> "Sample":
        """The same picture with nothing in it."""
        empty = {name: getattr(self, name)[:0] for name in ("labels", "boxes", "points", "area")}
        return dataclasses.replace(self, **empty)


def samples(folder: pathlib.Path) -> list[Sample]:
    """All pictures of the golden set."""
    data = goldens.arrays(folder, "inputs")
    found = []
    for b, meta in enumerate(goldens.config(folder)["img_metas"]):
        classes, keypoints = (_in_order(meta[key]) for key in ("id2index", "kpt_id2index"))
        labels = np.array([classes.index(i) for i in data[f"target{b}.class_labels"]], int)
        boxes, points, area = (data[f"target{b}.{name}"] for name in ("boxes", "keypoints", "area"))
        found.append(Sample(classes, keypoints, labels, boxes, points, area))
    return found


def links(folder: pathlib.Path, rooms: tuple[int, int]) -> Links:
    """Classes first, keypoints after; `rooms` are the places for each."""
    data = goldens.arrays(folder, "inputs")
    states, valid = [], []
    for name, places in zip(("obj", "kpt"), rooms, strict=True):
        queries, used = data[f"{name}_querys"], data[f"{name}_query_masks"]
        room = np.zeros((len(queries), places, *queries.shape[2:]), np.float32)
        count = min(places, queries.shape[1])
        room[:, :count] = queries[:, :count]
        mask = used[:, :places]
        # What stands in unused places means nothing and must not be looked at.
        states.append(np.where(mask[..., None, None], room, 7.0))
        valid.append(mask)
    return Links(
        jnp.asarray(np.concatenate(states, 1).astype(np.float32)), jnp.asarray(np.concatenate(valid, 1))
    )


def places(pictures: list[Sample]) -> tuple[int, int]:
    """Places for classes and for keypoints: those that the longest prompt needs, and one more."""
    return (
        1 + max(len(picture.classes) for picture in pictures),
        1 + max(len(picture.keypoints) for picture in pictures),
    )


def classes(pictures: list[Sample]) -> jnp.ndarray:
    """Which class places a row uses."""
    lengths = np.array([len(picture.classes) for picture in pictures])
    return jnp.asarray(np.arange(places(pictures)[0]) < lengths[:, None])


def keypoints(pictures: list[Sample]) -> jnp.ndarray:
    """Which keypoint places a row uses."""
    lengths = np.array([len(picture.keypoints) for picture in pictures])
    return jnp.asarray(np.arange(places(pictures)[1]) < lengths[:, None])


def targets(folder: pathlib.Path, pictures: list[Sample]) -> dict[str, jnp.ndarray]:
    """What the collator would make of these pictures."""
    data = goldens.arrays(folder, "inputs")
    rows, objects, points = (
        len(pictures),
        1 + max(len(picture.labels) for picture in pictures),
        places(pictures)[1],
    )
    out: dict[str, Any] = {
        "image": data["images"].transpose(0, 2, 3, 1),
        "size": np.stack([(~data["mask"]).any(2).sum(1), (~data["mask"]).any(1).sum(1)], 1),
        "keypoint_ids": np.zeros((rows, points), np.int32),
        "boxes": np.zeros((rows, objects, 4), np.float32),
        "labels": np.zeros((rows, objects), np.int32),
        "valid": np.zeros((rows, objects), bool),
        "area": np.zeros((rows, objects), np.float32),
        "keypoints": np.zeros((rows, objects, points, 2), np.float32),
        "visibility": np.zeros((rows, objects, points), np.int32),
    }
    for b, picture in enumerate(pictures):
        n, p, ids = len(picture.labels), len(picture.keypoints), picture.keypoints
        out["keypoint_ids"][b, :p] = ids
        out["boxes"][b, :n], out["labels"][b, :n] = picture.boxes, picture.labels
        out["valid"][b, :n], out["area"][b, :n] = True, picture.area
        xy = picture.points[:, : 2 * BODY_POINTS].reshape(n, BODY_POINTS, 2)
        out["keypoints"][b, :n, :p] = xy[:, ids]
        out["visibility"][b, :n, :p] = picture.points[:, 2 * BODY_POINTS :][:, ids] > 0
    return {name: jnp.asarray(value) for name, value in out.items()}


def draws(recorded: dict[str, np.ndarray], pictures: list[Sample], layout: Layout) -> Draws:
    """The official flat draws (block by block, in each the objects of all pictures) at our slots."""
    shape = layout.group.shape
    counts = [len(picture.labels) for picture in pictures]
    if not recorded:  # nothing to disturb, nothing drawn
        recorded = {"label_p": np.zeros(0), "new_label": np.zeros(0)}
    flip, label = np.ones(shape, np.float32), np.zeros(shape, np.int32)
    sign, size = np.ones((*shape, 4), np.float32), np.zeros((*shape, 4), np.float32)
    replaced = np.zeros(len(recorded["label_p"]), int)
    replaced[recorded["label_p"] < 0.25] = recorded["new_label"]
    for block in range(len(replaced) // max(sum(counts), 1)):
        for b, count in enumerate(counts):
            flat = block * sum(counts) + sum(counts[:b]) + np.arange(count)
            slot = block * max(counts) + np.arange(count)
            flip[b, slot], label[b, slot] = recorded["label_p"][flat], replaced[flat]
            sign[b, slot] = 2 * recorded["box_sign01"][flat] - 1
            size[b, slot] = recorded["box_part"][flat]
    return Draws(*map(jnp.asarray, (flip, label, sign, size)))


def in_prompt_order(points: np.ndarray, pictures: list[Sample], count: int) -> np.ndarray:
    """Official keypoints [B, G, 204] in dataset order as [B, G, count, 2] in prompt order, 0 where unused."""
    out = np.zeros((*points.shape[:2], count, 2), np.float32)
    for b, picture in enumerate(pictures):
        xy = points[b, :, : 2 * BODY_POINTS].reshape(len(points[b]), BODY_POINTS, 2)
        out[b, :, : len(picture.keypoints)] = xy[:, picture.keypoints]
    return out


def _in_order(index: dict[str, int]) -> list[int]:
    """Dataset numbers sorted by their place in the prompt."""
    return [int(number) for number, _ in sorted(index.items(), key=lambda item: item[1])]
