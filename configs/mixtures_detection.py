# SPDX-License-Identifier: Apache-2.0
"""Mixtures of detection and instance segmentation, for training and held out; see `configs.mixtures`."""

from typing import Any

_SIZE = 1333  # longest side of a picture, as published; its square is the next multiple of 32
_CAPACITIES = {"size": 1344, "objects": 100}
# Classes of a question. Beside five tiles (2,880 columns of a row of 4,096) and the words around them 80 have
# room, with names of up to 3.7 tokens: each stands in the question, and with its link in the answer.
_CLASSES = 80
_TESTED = 100  # as the official code tests


def _files(annotations: str, images: str, loader: str = "detection", **options: Any) -> dict[str, Any]:
    return {
        "loader": loader,
        "annotations": f"{{root}}/{annotations}",
        "image_root": f"{{root}}/{images}",
        "max_tiles": 4,
        "decoder_size": _SIZE,
        **options,
    }


# LVIS takes pictures of both of COCO's folders; their names come from its URLs ("train2017/...").
_LVIS: dict[str, Any] = {"masks": True, "clean_names": True}
_PART: dict[str, Any] = {"classes": _CLASSES}

# Weights are the numbers of training pictures in thousands; the published mixture drew subsets of unknown
# size.
DETECTION: dict[str, dict[str, Any]] = {
    "det": {
        "rows": 1,
        "tiles": 5,
        "decoder": "grounding_dino",
        "links": {"det": _CLASSES},
        "capacities": _CAPACITIES,
        "datasets": {
            "coco": {
                "weight": 118.0,
                **_files("coco/instances_train2017.json", "coco/train2017", masks=True, classes=80),
            },
            "lvis": {"weight": 100.0, **_files("lvis/lvis_v1_train.json", "coco", **_LVIS, **_PART)},
            "objects365": {
                "weight": 608.0,
                **_files("objects365/objects365_train.json", "objects365/train", **_PART),
            },
            "v3det": {
                "weight": 183.0,
                **_files("v3det/v3det_2023_v1_train.json", "v3det", clean_names=True, **_PART),
            },
        },
    },
    # One class and many objects.
    "crowd": {
        "rows": 1,
        "tiles": 5,
        "decoder": "grounding_dino",
        "links": {"det": 1},
        "capacities": {**_CAPACITIES, "objects": 300},
        "datasets": {
            "crowdhuman": {
                "weight": 1.0,
                **_files("crowdhuman/annotation_train.odgt", "crowdhuman/Images", "crowdhuman"),
            },
        },
    },
}

# The thirteen sets of object detection in the wild: pictures and annotations as they are distributed, and the
# parts that published results are of.
_WITHOUT_EMPTY = "annotations_without_background.json"
_ODINW = {
    "aerial": ("AerialMaritimeDrone/large/valid", _WITHOUT_EMPTY),
    "aquarium": ("Aquarium/Aquarium Combined.v2-raw-1024.coco/valid", _WITHOUT_EMPTY),
    "rabbits": ("CottontailRabbits/valid", _WITHOUT_EMPTY),
    "ego_hands": ("EgoHands/generic/mini_val", _WITHOUT_EMPTY),
    "mushrooms": ("NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/valid", _WITHOUT_EMPTY),
    "packages": ("Packages/Raw/valid", _WITHOUT_EMPTY),
    "pascal_voc": ("PascalVOC/valid", _WITHOUT_EMPTY),
    "pistols": ("pistols/export", "val_annotations_without_background.json"),
    "pothole": ("pothole/valid", _WITHOUT_EMPTY),
    "raccoon": ("Raccoon/Raccoon.v2-raw.coco/valid", _WITHOUT_EMPTY),
    "shellfish": ("ShellfishOpenImages/raw/valid", _WITHOUT_EMPTY),
    "thermal": ("thermalDogsAndPeople/valid", _WITHOUT_EMPTY),
    "vehicles": ("VehiclesOpenImages/416x416/mini_val", _WITHOUT_EMPTY),
}


def _held_out(
    metrics: tuple[str, ...], datasets: dict[str, dict[str, Any]], links: int = _TESTED
) -> dict[str, Any]:
    return {
        "metrics": metrics,
        **({"length": 4608} if links == _TESTED else {}),
        "tiles": 5,
        "decoder": "grounding_dino",
        "links": {"det": links},
        # The truth comes from the files, at the original size: targets have the picture only.
        "capacities": {**_CAPACITIES, "objects": 1},
        "datasets": {name: {**options, "test": True} for name, options in datasets.items()},
    }


DETECTION_HELDOUT: dict[str, dict[str, Any]] = {
    "coco": _held_out(
        ("box", "mask"),
        {"coco": _files("coco/instances_val2017.json", "coco/val2017", masks=True, classes=80)},
        80,
    ),
    "lvis": _held_out(("box", "mask"), {"lvis": _files("lvis/lvis_v1_val.json", "coco", **_LVIS)}),
    "crowdhuman": _held_out(
        ("crowdhuman",),
        {"crowdhuman": _files("crowdhuman/annotation_val.odgt", "crowdhuman/Images", "crowdhuman")},
        1,
    ),
    "odinw": _held_out(
        ("box",),
        {
            name: _files(f"odinw/{folder}/{annotations}", f"odinw/{folder}")
            for name, (folder, annotations) in _ODINW.items()
        },
    ),
}
