# SPDX-License-Identifier: Apache-2.0
"""Answers and scores of the pose decoder: evaluation.npz."""

import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.metrics import same_ranking
from vllm2_jax.evals import coco, pose, postprocess
from vllm2_jax.evals.objects import Detections, GroundTruth
from vllm2_jax.ops.select import best_pairs


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "evaluation")
    for name in sorted({key.partition(".")[0] for key in data if key.endswith(".logits")}):
        yield from _answers(data, name)
    yield "PCK", np.array(_pck(data)), data["pck.value"]
    yield "OKS", _oks(data), data["unikpt_oks.matrix"]


def _answers(data: dict[str, np.ndarray], name: str) -> Iterator[Case]:
    """The ranking of both pictures, in pixels, with the dataset's class ids."""
    logits = data[f"{name}.logits"]
    scores, queries, labels = (np.asarray(x) for x in best_pairs(jnp.asarray(logits), logits[0].size))
    want = {
        key.replace(f"{name}.out", "").replace(".", "/"): data[key] for key in data if f"{name}.out" in key
    }
    for i, size in enumerate(data["target_sizes"]):
        points = data[f"{name}.keypoints"][i][queries[i]]
        points = points.reshape(len(points), -1, 2) * size[::-1].astype(np.float32)
        boxes = postprocess.boxes_in_pixels(data[f"{name}.boxes"][i], (int(size[0]), int(size[1])))
        found = {
            "scores": scores[i],
            "labels": data[f"{name}.id_mapping"][labels[i]],
            "boxes": boxes[queries[i]],
            "keypoints": np.insert(points, 2, 1, axis=2).reshape(len(points), -1),
        }
        for case, got, wanted in same_ranking(str(i), found, want, len(want[f"{i}/scores"])):
            yield f"{name} {case}", got, wanted


def _pck(data: dict[str, np.ndarray]) -> float:
    """PCK of the pictures of the file, each with three detections and one object."""
    found, truths = [], []
    while f"pck.gt{len(truths)}" in data:
        n = len(truths)
        points = data[f"pck.pred{n}"].reshape(len(data[f"pck.pred{n}"]), -1, 3)[..., :2]
        count = len(points)
        found.append(
            Detections(np.zeros((count, 4)), np.zeros(count, int), data[f"pck.score{n}"], keypoints=points)
        )
        x, y, width, height = data[f"pck.bbox{n}"]
        box = np.array([[x, y, x + width, y + height]])
        truths.append(GroundTruth((1, 1), box, np.zeros(1, int), keypoints=data[f"pck.gt{n}"][None]))
    return pose.pck()(found, truths)["pck"]


def _oks(data: dict[str, np.ndarray]) -> np.ndarray:
    """Similarity of every detection (best first) with every object."""
    true, found = data["unikpt_oks.gt"], data["unikpt_oks.dt"]
    true, found = (x.reshape(len(x), -1, 3) for x in (true, found))
    corners = data["unikpt_oks.gt_bbox"]
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    truth = GroundTruth(
        (1, 1), boxes, np.ones(len(true), int), keypoints=true, area=data["unikpt_oks.gt_area"]
    )
    scores = data["unikpt_oks.dt_score"]
    detections = Detections(
        np.zeros((len(found), 4)), np.ones(len(found), int), scores, keypoints=found[..., :2]
    )
    sigmas = pose.UNIKPT_SIGMAS[: true.shape[1]]
    return coco.evaluator([(detections, truth)], "keypoints", sigmas=sigmas).ious[1, 1]
