# SPDX-License-Identifier: Apache-2.0
"""Data on the host: readers, conversations, pictures; numpy only.

`DATASETS` names what a mixture can draw from. Each entry is a `load(**options)` that returns a random-access
source: `len(source)`, `source[i] -> Example`.
"""

from collections.abc import Callable
from typing import Any

from data_pipelines.datasets import (
    captions,
    counting,
    crowdhuman,
    detection,
    editing,
    grounded_captions,
    in_context,
    interactive,
    keypoints,
    llava,
    osprey,
    questions,
    recognition,
    referring,
    region_captions,
    saliency,
    semantic,
    synthetic,
    text_to_image,
    tfds,
    vcr,
)

DATASETS: dict[str, Callable[..., Any]] = {
    "captions": captions.load,
    "counting": counting.load,
    "crowdhuman": crowdhuman.load,
    "detection": detection.load,
    "editing": editing.load,
    "grounded_captions": grounded_captions.load,
    "in_context": in_context.load,
    "interactive": interactive.load,
    "keypoints": keypoints.load,
    "llava": llava.load,
    "osprey": osprey.load,
    "questions": questions.load,
    "recognition": recognition.load,
    "referring": referring.load,
    "region_captions": region_captions.load,
    "saliency": saliency.load,
    "semantic": semantic.load,
    "synthetic": synthetic.load,
    "text_to_image": text_to_image.load,
    "tfds": tfds.load,
    "vcr": vcr.load,
}
