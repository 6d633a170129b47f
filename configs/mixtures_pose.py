# SPDX-License-Identifier: Apache-2.0
"""Mixtures of poses, for training and held out; see `configs.mixtures`."""

from typing import Any

_TASK = {
    "tiles": 5,
    "decoder": "unipose",
    "links": {"det": 54, "pose": 68},  # AP-10K's classes, 300W's points
    "capacities": {"size": 1344, "objects": 50},
}


def _files(
    annotations: str, images: str = "", keypoints: str = "coco", max_tiles: int = 4, **options: Any
) -> dict[str, Any]:
    return {
        "loader": "keypoints",
        "annotations": f"{{root}}/{annotations}",
        "image_root": f"{{root}}/{images}" if images else "{root}",
        "keypoints": keypoints,
        "max_tiles": max_tiles,
        **options,
    }


# Weights are about the numbers of training pictures in thousands. Human-Art's file names begin with its
# folder. A row of 3,328 columns holds five tiles (2,880), a class and 23 keypoints with their links; AP-10K's
# 54 classes leave room for three tiles, 300W's 68 keypoints for one.
POSE: dict[str, dict[str, Any]] = {
    "pose": {
        "rows": 1,
        **_TASK,
        "datasets": {
            "coco": {
                "weight": 57.0,
                **_files("coco/person_keypoints_train2017.json", "coco/train2017"),
            },
            "crowdpose": {
                "weight": 12.0,
                **_files("crowdpose/crowdpose_trainval.json", "crowdpose/images", "crowdpose"),
            },
            "humanart": {
                "weight": 36.0,
                **_files("HumanArt/annotations/training_humanart.json", keypoints="humanart"),
            },
            "ap10k": {
                "weight": 7.0,
                **_files("ap10k/annotations/ap10k-train-split1.json", "ap10k/data", "ap10k", max_tiles=2),
            },
            "macaque": {
                "weight": 12.5,
                **_files("macaque/macaque_train.json", "macaque/images", "macaque"),
            },
            "300w": {
                "weight": 3.0,
                **_files("300w/face_landmarks_300w_train.json", "300w/images", "300w", max_tiles=1),
            },
            "animal_kingdom": {
                "weight": 24.0,
                **_files("animal_kingdom/train.json", "animal_kingdom/images", "animal_kingdom"),
            },
        },
    },
}


def _task(metric: str, dataset: str, *files: Any, **options: Any) -> dict[str, Any]:
    return {**_TASK, "metrics": (metric,), "datasets": {dataset: _files(*files, **options, test=True)}}


# Every dataset is measured as its own papers do: PCK where each picture shows one object.
POSE_HELDOUT: dict[str, dict[str, Any]] = {
    "coco": _task("keypoints", "coco", "coco/person_keypoints_val2017.json", "coco/val2017"),
    "crowdpose": _task(
        "crowdpose", "crowdpose", "crowdpose/crowdpose_test.json", "crowdpose/images", "crowdpose"
    ),
    "humanart": _task(
        "keypoints", "humanart", "HumanArt/annotations/validation_humanart.json", keypoints="humanart"
    ),
    "ap10k": _task("unikpt", "ap10k", "ap10k/annotations/ap10k-test-split1.json", "ap10k/data", "ap10k"),
    "macaque": _task("unikpt", "macaque", "macaque/macaque_test.json", "macaque/images", "macaque"),
    "300w": _task("pck", "300w", "300w/face_landmarks_300w_valid.json", "300w/images", "300w", max_tiles=1),
    "animal_kingdom": _task(
        "pck", "animal_kingdom", "animal_kingdom/test.json", "animal_kingdom/images", "animal_kingdom"
    ),
}
