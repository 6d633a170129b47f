# SPDX-License-Identifier: Apache-2.0
"""Real photos learnt by heart: conversations, people with boxes and masks, poses, edits of pictures.

    python -m launch.train --config configs/samples.py:det --config.data.root=FOLDER --workdir runs/det
    python -m launch.evaluate --config configs/samples.py:det --config.data.root=FOLDER --workdir runs/det

Behind the colon stand the parts to learn, of "chat", "det", "pose" and "edit", joined by "+"; "chat" alone
for plain `--config configs/samples.py`. Evaluation asks about the same photos: it measures memory, not skill.

FOLDER holds a few pictures of each dataset, in its own format:

  coco/        llava_chat.json (LLaVA conversations), captions.jsonl, person_keypoints.json (with outlines),
               edits.jsonl (input, instruction, output)
  crowdpose/   crowdpose.json
  ap10k/       ap10k.json
  humanart/    humanart.json
  macaque/     macaque.json
"""

from typing import Any

import ml_collections

from configs import laptop
from configs.groups import ALL_BUT_CAPTIONS, GROUPS
from configs.sizes import CAPTION, TINY_DECODERS

_SIZE = 192  # longest side of the decoders' pictures: the smallest person is 5 x 10 pixels there
_EDITED = 32  # side of the pictures that are edited


def _people(**options: Any) -> dict[str, Any]:
    return {
        "loader": "detection",
        "annotations": "{root}/coco/person_keypoints.json",
        "image_root": "{root}/coco",
        "masks": True,
        "max_tiles": 1,
        "decoder_size": _SIZE,
        "augment": False,
        **options,
    }


def _poses(folder: str, name: str, keypoints: str, **options: Any) -> dict[str, Any]:
    return {
        "loader": "keypoints",
        "annotations": f"{{root}}/{folder}/{name}.json",
        "image_root": f"{{root}}/{folder}",
        "keypoints": keypoints,
        "every_class": False,
        "max_tiles": 1,
        "decoder_size": _SIZE,
        "augment": False,
        **options,
    }


# Name -> metric, and how it is read; the weights are the numbers of pictures.
_POSES: dict[str, tuple[str, dict[str, Any]]] = {
    "coco": ("keypoints", _poses("coco", "person_keypoints", "coco", weight=4.0)),
    "crowdpose": ("crowdpose", _poses("crowdpose", "crowdpose", "crowdpose", weight=2.0)),
    "ap10k": ("unikpt", _poses("ap10k", "ap10k", "ap10k", weight=2.0)),
    "humanart": (
        "keypoints",
        _poses("humanart", "humanart", "humanart", weight=3.0, prefix="HumanArt/images/"),
    ),
    "macaque": ("unikpt", _poses("macaque", "macaque", "macaque", weight=2.0)),
}
_CHAT = {"llava": {"annotations": "{root}/coco/llava_chat.json", "max_tiles": 1}}
_CAPTIONS = {"captions": {"annotations": "{root}/coco/captions.jsonl", "max_tiles": 1}}
_DET = {
    "tiles": 1,
    "decoder": "grounding_dino",
    "links": {"det": 1},
    "capacities": {"size": _SIZE, "objects": 8},
}
_POSE = {
    "tiles": 1,
    "decoder": "unipose",
    "links": {"det": 2, "pose": 17},
    "capacities": {"size": _SIZE, "objects": 8},
}
_EDIT = {
    "tiles": 1,
    "decoder": "instruct_pix2pix",
    "links": {"edit": 1},
    "capacities": {"size": _EDITED, "caption": CAPTION},
}


def _edits(**options: Any) -> dict[str, Any]:
    file = {"annotations": "{root}/coco/edits.jsonl", "max_tiles": 1}
    return {"editing": {**file, **options}}


# What a part adds to the mixture, to what is evaluated and to the decoders.
_MIXTURE: dict[str, dict[str, Any]] = {
    "chat": {
        "chat": {"rows": 4, "tiles": 1, "datasets": _CHAT},
        "caption": {"rows": 4, "tiles": 1, "datasets": _CAPTIONS},
    },
    "det": {"det": {"rows": 4, **_DET, "datasets": {"coco": _people()}}},
    "pose": {"pose": {"rows": 6, **_POSE, "datasets": {name: files for name, (_, files) in _POSES.items()}}},
    "edit": {"edit": {"rows": 8, **_EDIT, "datasets": _edits()}},
}
_EVALUATED: dict[str, dict[str, Any]] = {
    "chat": {"chat": {"tiles": 1, "regions": 0, "datasets": _CHAT}},
    "det": {"det": {"metrics": ("box", "mask"), **_DET, "datasets": {"coco": _people(test=True)}}},
    "pose": {
        f"pose_{name}": {"metrics": (metric,), **_POSE, "datasets": {name: {**files, "test": True}}}
        for name, (metric, files) in _POSES.items()
    },
    "edit": {"edit": {"metrics": ("edits",), **_EDIT, "datasets": _edits(test=True)}},
}
_DECODERS: dict[str, dict[str, Any]] = {
    "chat": {},
    "det": {"grounding_dino": TINY_DECODERS["grounding_dino"]},
    "pose": {"unipose": {**TINY_DECODERS["unipose"], "instances": 8}},  # five people on one photo
    "edit": {
        "instruct_pix2pix": {
            **TINY_DECODERS["instruct_pix2pix"],
            "unet": {
                **TINY_DECODERS["instruct_pix2pix"]["unet"],
                "widths": (32, 64, 64),
                "attends": (False, True, True),
            },
            "vae": {**TINY_DECODERS["instruct_pix2pix"]["vae"], "widths": (16, 32)},
            "size": _EDITED,
            "draws": 2,
            "predicts": "noise",
            "kl_weight": 1e-4,
            "objective": "both",
            "sampling": {
                "sampler": "euler_ancestral",
                "steps": 20,
                "max_steps": 50,
                "guidance": 2.0,
                "image_guidance": 1.2,
            },
        }
    },
}
# Updates, columns of a row, learning rate, kernels that Muon trains (where all parts agree).
_RUNS = {
    "chat": (400, 192, 1e-3, ""),
    "det": (800, 112, 8e-4, ""),
    "pose": (1000, 384, 8e-4, r"^(llm/layers|vision/blocks|decoders)/(?!.*/(offsets|weights)/).*kernel$"),
    "edit": (1200, 112, 1e-3, r"^decoders/.*kernel$"),
}


def get_config(parts: str = "") -> ml_collections.ConfigDict:
    """Changes to `configs/laptop.py`."""
    names = (parts or "chat").split("+")
    unknown = sorted(set(names) - set(_RUNS))
    if unknown:
        raise ValueError(f"unknown parts {unknown} of the samples; there are {', '.join(_RUNS)}")
    config = laptop.get_config()
    with config.unlocked(), config.ignore_type():
        config.steps = max(_RUNS[name][0] for name in names)
        config.data.length = max(_RUNS[name][1] for name in names)
        config.optimizer.peak = min(_RUNS[name][2] for name in names)
        config.data.mixture = {task: entry for name in names for task, entry in _MIXTURE[name].items()}
        config.eval.tasks = {task: entry for name in names for task, entry in _EVALUATED[name].items()}
        config.model.decoders = {key: sizes for name in names for key, sizes in _DECODERS[name].items()}
        config.eval.pictures = 4
        if config.model.decoders:
            config.optimizer.groups = GROUPS["all_links"]
        if "edit" in names:
            config.model.queries.generation = 4
            config.optimizer.groups = ALL_BUT_CAPTIONS
            config.eval.pictures = 16
        if len({_RUNS[name][3] for name in names}) == 1:
            config.optimizer.muon = _RUNS[names[0]][3]
        config.data.groups = 1
        config.eval.every = 100 if names == ["chat"] else 250
        config.eval.max_new = 128
    return config
