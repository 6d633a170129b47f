# SPDX-License-Identifier: Apache-2.0
"""Mixtures: which tasks a batch holds, how many rows of each a group has, and where they come from.

A task's keys are those of `data_pipelines.collate.TaskShape` and `datasets`; a dataset's are a loader of
`data_pipelines.DATASETS` (`loader`, or its own name), its `weight` in the task, and the loader's own options.
`{root}` stands for `config.data.root`. A new task is one more entry.
"""

from typing import Any

from configs.mixtures_detection import DETECTION, DETECTION_HELDOUT
from configs.mixtures_grounding import GROUNDING, GROUNDING_HELDOUT
from configs.mixtures_pose import POSE, POSE_HELDOUT
from configs.mixtures_questions import QUESTIONS_HELDOUT
from configs.sizes import CAPTION

# Every scene has one tile; the rows of a group are those of an ordinary batch, interleaved.
_SYNTHETIC = {
    "chat": {"rows": 4, "tiles": 1, "datasets": {"synthetic": {"weight": 1.0, "task": "chat"}}},
    "caption": {"rows": 2, "tiles": 1, "datasets": {"synthetic": {"weight": 1.0, "task": "caption"}}},
    "region": {
        "rows": 2,
        "tiles": 1,
        "regions": 4,
        "datasets": {"synthetic": {"weight": 1.0, "task": "region"}},
    },
}


# What the grounding decoder learns from scenes: objects of classes, what an expression means, class areas.
# Things are large, pictures small: a backbone that starts from nothing learns shapes from how many it sees.
def _perception(level: str) -> dict[str, dict[str, Any]]:
    return {
        task: {
            "rows": rows,
            "tiles": 1,
            "decoder": "grounding_dino",
            "links": {task: links},
            "capacities": {"size": 64, "objects": objects},
            "datasets": {"synthetic": {"task": task, "level": at, "decoder_size": 64, "names": links}},
        }
        for task, rows, links, objects, at in (
            ("det", 5, 5, 4, level),
            ("grd", 4, 1, 1, "bold"),
            ("seg", 3, 5, 4, level),
        )
    }


# What the pose decoder learns from scenes: the keypoints of one person, up to four in a question.
_SYNTHETIC_POSE: dict[str, dict[str, Any]] = {
    "pose": {
        "rows": 5,
        "tiles": 1,
        "decoder": "unipose",
        "links": {"det": 1, "pose": 4},
        "capacities": {"size": 64, "objects": 1},
        "datasets": {"synthetic": {"task": "pose", "level": "portrait", "decoder_size": 64, "names": 4}},
    }
}

# What the decoders that paint learn from scenes with one huge thing; every fourth pair of shape and colour is
# held out.
_SYNTHETIC_PAINTING: dict[str, dict[str, Any]] = {
    task: {
        "rows": 4,
        "length": length,
        "tiles": tiles,
        "decoder": decoder,
        "links": {link: 1},
        "capacities": {"size": 16, "caption": CAPTION},
        "datasets": {"synthetic": {"task": task, "level": "close", "novel": True, "decoder_size": 16}},
    }
    for task, decoder, link, tiles, length in (
        ("t2i", "stable_diffusion", "gen", 0, 80),
        ("edit", "instruct_pix2pix", "edit", 1, 112),
    )
}

# Sizes of the parts from paper table A11; the proportions between datasets were not published, so weights are
# their listed sizes in thousands.
_CAPTIONS = {
    "coco": {"loader": "captions", "weight": 567.0, "annotations": "{root}/coco/captions_train2017.jsonl"},
    "textcaps": {"loader": "captions", "weight": 22.0, "annotations": "{root}/textcaps/train.jsonl"},
}
_CHAT = {
    "sharegpt4v": {"loader": "llava", "weight": 665.0, "annotations": "{root}/sharegpt4v/train.json"},
    "allava": {"loader": "llava", "weight": 700.0, "annotations": "{root}/allava/train.json"},
    "llavar": {"loader": "llava", "weight": 220.0, "annotations": "{root}/llavar/train.json"},
}
# COCO's and RefCOCO's files name pictures without their folder, LVIS' URLs have it ("train2017/...").
_REGION_CAPTIONS = {
    "vg": {"loader": "region_captions", "weight": 2000.0, "annotations": "{root}/vg/train.json"},
    "refcoco": {
        "loader": "region_captions",
        "weight": 200.0,
        "annotations": "{root}/refcoco/train.json",
        "image_root": "{root}/coco/train2014",
        "form": "mixed",
        "min_words": 3,
    },
}
_RECOGNITION = {
    "coco": {
        "loader": "recognition",
        "weight": 118.0,
        "annotations": "{root}/coco/instances_train2017.json",
        "image_root": "{root}/coco/train2017",
        "note": "one of the 80 COCO classes",
    },
    "lvis": {
        "loader": "recognition",
        "weight": 100.0,
        "annotations": "{root}/lvis/lvis_v1_train.json",
        "image_root": "{root}/coco",
        "note": "one of the LVIS classes",
        "clean_names": True,
    },
    "v3det": {
        "loader": "recognition",
        "weight": 183.0,
        "annotations": "{root}/v3det/v3det_2023_v1_train.json",
        "form": "box",
    },
}


def _with(datasets: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The same options for every dataset; pictures lie beside the file unless `image_root` says where."""
    return {
        name: {"image_root": entry["annotations"].rpartition("/")[0], **options, **entry}
        for name, entry in datasets.items()
    }


MIXTURES: dict[str, dict[str, Any]] = {
    "synthetic": _SYNTHETIC,
    "synthetic_perception": _perception("bolder"),
    "detection": DETECTION,
    "grounding": GROUNDING,
    "synthetic_pose": _SYNTHETIC_POSE,
    "synthetic_painting": _SYNTHETIC_PAINTING,
    "pose": POSE,
    # Stage 1, first phase: one padded tile, captions without a question.
    "stage1_pretrain": {
        "caption": {"rows": 6, "tiles": 1, "datasets": _with(_CAPTIONS, image_mode="pad", ask=False)},
        "region": {
            "rows": 2,
            "tiles": 1,
            "regions": 1,
            "datasets": _with(_REGION_CAPTIONS, image_mode="pad"),
        },
    },
    # Stage 1, second phase: up to four tiles and the whole picture.
    "stage1_tune": {
        "chat": {"rows": 5, "tiles": 5, "datasets": _with(_CHAT, max_tiles=4)},
        "region": {"rows": 1, "tiles": 5, "regions": 1, "datasets": _with(_REGION_CAPTIONS, max_tiles=4)},
        "recognition": {"rows": 1, "tiles": 5, "regions": 15, "datasets": _with(_RECOGNITION, max_tiles=4)},
        "question": {
            "rows": 1,
            "tiles": 5,
            "regions": 10,
            "datasets": _with(
                {"vcr": {"weight": 290.0, "annotations": "{root}/vcr/train.jsonl"}}, max_tiles=4
            ),
        },
    },
}

# Questions with known answers and pictures with known objects, for evaluation; the same form without rows,
# and for a task with a decoder the `metrics`, keys of `vllm2_jax.evals.EVALS`.
_METRICS = {
    "det": ("box", "mask", "count"),
    "grd": ("refer",),
    "seg": ("semantic",),
    "pose": ("keypoints", "box"),
    "t2i": ("agreement",),
    "edit": ("edits",),
}


def _held_out(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same tasks of scenes, on scenes that training never draws."""
    return {
        task: {
            "metrics": _METRICS[task],
            **{key: value for key, value in entry.items() if key not in ("rows", "datasets")},
            "datasets": {"synthetic": {**entry["datasets"]["synthetic"], "split": "heldout"}},
        }
        for task, entry in tasks.items()
    }


HELDOUT: dict[str, dict[str, Any]] = {
    "synthetic": {
        task: {
            "tiles": 1,
            "regions": 1 if task == "region" else 0,
            "datasets": {"synthetic": {"task": task, "split": "heldout"}},
        }
        for task in ("chat", "caption", "region")
    },
    "synthetic_perception": _held_out(_perception("bold")),
    "synthetic_pose": _held_out(_SYNTHETIC_POSE),
    "synthetic_painting": _held_out(_SYNTHETIC_PAINTING),
    "detection": DETECTION_HELDOUT,
    "grounding": GROUNDING_HELDOUT,
    "pose": POSE_HELDOUT,
    "questions": QUESTIONS_HELDOUT,
}
