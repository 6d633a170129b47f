# SPDX-License-Identifier: Apache-2.0
"""Mixtures of what the grounding decoder does beside detection, for training and held out: expressions, areas
of classes, objects that stand out, marks, counts, captions with boxes, examples. See `configs.mixtures`."""

from typing import Any

_DECODER = {"decoder": "grounding_dino", "tiles": 5}
_SIZE = 1333  # longest side of a picture, as published; its square is the next multiple of 32
_SQUARE = 1344


def _capacities(objects: int, size: int = _SQUARE) -> dict[str, int]:
    return {"size": size, "objects": objects}


def _refers(name: str, split: str) -> dict[str, Any]:
    """RefCOCO, RefCOCO+ or RefCOCOg: references as JSON, beside the objects they speak of."""
    return {
        "loader": "referring",
        "annotations": f"{{root}}/{name}/refs.json",
        "instances": f"{{root}}/{name}/instances.json",
        "split": split,
        "image_root": "{root}/coco/train2014",
        "decoder_size": _SIZE,
    }


def _reasons(split: str) -> dict[str, Any]:
    folder = f"{{root}}/ReasonSeg/{split}"
    return {"loader": "referring", "annotations": folder, "image_root": folder, "decoder_size": _SIZE}


def _scenes(split: str) -> dict[str, Any]:
    """ADE20K as released for its benchmark, with the names of its 150 classes as a JSON list."""
    return {
        "loader": "semantic",
        "image_root": f"{{root}}/ADEChallengeData2016/images/{split}",
        "mask_root": f"{{root}}/ADEChallengeData2016/annotations/{split}",
        "names": "{root}/ADEChallengeData2016/names.json",
    }


def _stands_out(images: str, masks: str, **options: Any) -> dict[str, Any]:
    return {
        "loader": "saliency",
        "image_root": f"{{root}}/{images}",
        "mask_root": f"{{root}}/{masks}",
        "decoder_size": _SIZE,
        **options,
    }


_HIDDEN: dict[str, Any] = {"names": ("camouflaged object",)}
# Of COD10K only the pictures with something hidden.
_COD10K: dict[str, Any] = {**_HIDDEN, "files": "COD10K-CAM-*"}


def _files(loader: str, annotations: str, images: str, **options: Any) -> dict[str, Any]:
    return {
        "loader": loader,
        "annotations": f"{{root}}/{annotations}",
        "image_root": f"{{root}}/{images}",
        "decoder_size": _SIZE,
        **options,
    }


# Weights are the numbers of training pictures or objects in thousands; the published mixture drew subsets of
# unknown size.
GROUNDING: dict[str, dict[str, Any]] = {
    "grd": {
        "rows": 2,
        **_DECODER,
        "links": {"grd": 1},
        "capacities": _capacities(1),
        "datasets": {
            "refcoco": {"weight": 42.0, **_refers("refcoco", "train")},
            "refcoco+": {"weight": 42.0, **_refers("refcoco+", "train")},
            "refcocog": {"weight": 42.0, **_refers("refcocog", "train")},
            "reasonseg": {"weight": 0.2, **_reasons("train")},
        },
    },
    "seg": {
        "rows": 1,
        **_DECODER,
        "tiles": 1,
        # All 150 classes and their links fill 1,600 to 2,400 columns, so that a row that elsewhere holds five
        # tiles has room for one (576 columns). The decoder sees a part of the picture anyway.
        "links": {"seg": 150},
        "capacities": _capacities(64, size=512),
        "datasets": {"ade20k": {"weight": 20.0, "max_tiles": 1, **_scenes("training")}},
    },
    "salient": {
        "rows": 1,
        **_DECODER,
        "links": {"det": 1},
        "capacities": _capacities(1),
        "datasets": {
            "duts": {"weight": 10.5, **_stands_out("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask")},
            "msra10k": {"weight": 10.0, **_stands_out("MSRA10K/Imgs", "MSRA10K/Imgs")},
            "cod10k": {
                "weight": 3.0,
                **_stands_out("COD10K-v3/Train/Image", "COD10K-v3/Train/GT_Object", **_COD10K),
            },
            "camo": {"weight": 1.0, **_stands_out("CAMO/Images/Train", "CAMO/GT", **_HIDDEN)},
        },
    },
    "interactive": {
        "rows": 1,
        **_DECODER,
        "tiles": 1,  # of the whole picture, so that every mark lies in it
        "regions": 20,
        "links": {"det": 20},
        "capacities": _capacities(20),
        "datasets": {
            "coco": {
                "weight": 118.0,
                **_files("interactive", "coco/instances_train2017.json", "coco/train2017"),
            },
        },
    },
    "count": {
        "rows": 1,
        **_DECODER,
        "regions": 1,
        "links": {"det": 1},
        "capacities": _capacities(100),
        "datasets": {
            name: {
                "weight": weight,
                **_files("counting", f"{annotations}.json", images, by="mixed", objects=100, **more),
            }
            for name, weight, annotations, images, more in (
                ("coco", 118.0, "coco/instances_train2017", "coco/train2017", {}),
                ("lvis", 100.0, "lvis/lvis_v1_train", "coco", {"clean_names": True}),
                ("objects365", 300.0, "objects365/objects365_train", "objects365/train", {}),
                ("ca44", 24.0, "CA44/train", "CA44/images", {}),
            )
        },
    },
    "det_cap": {
        "rows": 1,
        **_DECODER,
        "links": {"det": 40},
        "capacities": _capacities(80),
        "datasets": {
            "groma": {
                "weight": 30.0,
                **_files("grounded_captions", "groma_instruct/groma_instruct.json", "coco/train2017"),
            },
            "flickr30k": {
                "weight": 148.0,
                **_files("grounded_captions", "flickr30k/train.json", "flickr30k/images"),
            },
        },
    },
    # Up to six pictures of one tile each.
    "in_context": {
        "rows": 1,
        "decoder": "grounding_dino",
        "tiles": 6,
        "regions": 25,
        "links": {"det": 1},
        "capacities": _capacities(1),
        "datasets": {
            "mmic": {
                "weight": 890.0,
                **_files("in_context", "mmic/train_mask.jsonl", "mmic", image_mode="stretch"),
            },
        },
    },
}


def _held_out(task: str, metric: str, **datasets: dict[str, Any]) -> dict[str, Any]:
    """A task of the mixture on other files."""
    kept = {key: value for key, value in GROUNDING[task].items() if key not in ("rows", "datasets")}
    return {
        **kept,
        "metrics": (metric,),
        "datasets": {name: {**options, "test": True} for name, options in datasets.items()},
    }


GROUNDING_HELDOUT: dict[str, dict[str, Any]] = {
    "refer": _held_out(
        "grd",
        "refer",
        **{
            f"{name}_{split}": _refers(name, split)
            for name in ("refcoco", "refcoco+", "refcocog")
            for split in (("val", "test") if name == "refcocog" else ("val", "testA", "testB"))
        },
        reasonseg=_reasons("val"),
    ),
    # The whole picture, as the official code tests: all classes beside five tiles; the decoder's shorter side
    # is 512, the longer one up to 2,048 pixels.
    "semantic": {
        **_held_out("seg", "semantic", ade20k=_scenes("validation")),
        "length": 5376,
        "tiles": 5,
        "capacities": _capacities(64, size=2048),
    },
    "saliency": _held_out(
        "salient",
        "saliency",
        duts=_stands_out("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
        cod10k=_stands_out("COD10K-v3/Test/Image", "COD10K-v3/Test/GT_Object", **_COD10K),
        camo=_stands_out("CAMO/Images/Test", "CAMO/GT", **_HIDDEN),
    ),
    # Its pictures have up to 60 marks; the tower sees up to five tiles, the marks lie in the whole picture.
    "interactive": {
        **_held_out(
            "interactive",
            "interactive",
            **{
                shape: _files(
                    "interactive",
                    "coco/coco_interactive_val_psalm.json",
                    "coco/val2017",
                    given=shape,
                    most=64,
                    image_mode="anyres",
                )
                for shape in ("point", "scribble", "box", "mask")
            },
        ),
        "length": 4608,
        "tiles": 5,
        "regions": 64,
        "links": {"det": 64},
        "capacities": _capacities(64),
    },
    "count": _held_out(
        "count", "count", coco=_files("counting", "coco/instances_val2017.json", "coco/val2017", by="name")
    ),
}
