# SPDX-License-Identifier: Apache-2.0
"""Metrics by name; a task of `config.eval.tasks` names its own. A new one is a file and a line here."""

from vllm2_jax.evals import (
    choice,
    coco,
    count,
    crowdhuman,
    documents,
    exact_match,
    interactive,
    names,
    paint,
    pose,
    refer,
    saliency,
    semantic,
    vqa,
    yes_no,
)
from vllm2_jax.evals.metric import Metric

# Metrics of answers in words: they compare a text with a `Question`.
WORDS: dict[str, Metric] = {
    "exact_match": exact_match.METRIC,
    "accuracy": names.recognition("accuracy"),
    "vqa": vqa.vqa(),
    "anls": documents.anls(),
    "relaxed": documents.relaxed(),
    "choice": choice.choice(),
    "circular": choice.circular(),
    "vcr": choice.vcr(),
    "pope": yes_no.pope(),
    "mme": yes_no.mme(),
    "recognition": names.recognition(),
    "semantic_iou": names.semantic_iou(),
}
# Metrics of objects: `Detections` against `GroundTruth`.
OBJECTS: dict[str, Metric] = {
    "box": coco.coco("bbox", "box"),
    "mask": coco.coco("segm", "mask"),
    "keypoints": coco.coco("keypoints", "keypoints"),
    "crowdpose": pose.crowdpose(),
    "unikpt": pose.unikpt(),
    "pck": pose.pck(),
    "refer": refer.refer(),
    "interactive": interactive.interactive(),
    "saliency": saliency.saliency(),
    "crowdhuman": crowdhuman.crowdhuman(),
    "count": count.count(),
}
# Those that look at the masks of the objects.
MASKS = frozenset({"mask", "refer", "interactive", "saliency"})
# Metrics of maps with a class for every pixel: `LabelMap` twice.
MAPS: dict[str, Metric] = {"semantic": semantic.semantic()}

# Metrics of pictures that were made: what they show, `paint.Thing` twice, or a picture against an `Edit`.
PICTURES: dict[str, Metric] = {"agreement": paint.agreement(), "edits": paint.edits()}

EVALS: dict[str, Metric] = WORDS | OBJECTS | MAPS | PICTURES
