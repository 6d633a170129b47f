# SPDX-License-Identifier: Apache-2.0
"""Wordings of the questions that datasets ask about pictures and regions.

The wordings are this project's own. Published scores were measured with the official lists; give those as a
JSON file with the same keys and slots, `{"region_caption": ["Describe {region}.", ...]}`.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.records import read_json
from data_pipelines.templates_perception import PERCEPTION
from data_pipelines.templates_pose import POSE

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "caption": (
        "Describe this picture in one sentence.",
        "What is in the picture? One sentence, please.",
        "Write a caption for this image.",
        "Sum up what you see here in a sentence.",
        "Give the photo a short description.",
        "Tell me briefly what this picture shows.",
        "Caption this image.",
        "How would you describe this scene in one sentence?",
    ),
    "region_caption": (
        "Describe {region} in a few words.",
        "What do you see at {region}?",
        "Tell me about {region}.",
        "Give a short description of {region}.",
        "What does {region} show?",
        "Write a phrase that fits {region}.",
        "How would you describe {region}?",
        "Put {region} into words.",
        "What is {region} about?",
        "Say briefly what is inside {region}.",
    ),
    "region_detail": (
        "Describe {region} in detail.",
        "Tell me everything you can see at {region}.",
        "Give a thorough description of {region}.",
        "What exactly does {region} look like?",
        "Explain {region} with as many details as you can.",
        "I would like a complete description of {region}.",
    ),
    "region_list": (
        "There are {n} regions in this picture: {region}.",
        "Look at these {n} regions: {region}.",
        "The picture has {n} marked regions, {region}.",
    ),
    "recognition": (
        "What is inside {region}? One word or phrase.",
        "{region}: which object?",
        "Name the category of {region}.",
        "Which class does {region} belong to?",
        "What kind of thing is {region}? Answer with its name.",
        "Give the name of the object at {region}.",
        "Label {region}.",
        "What do you call the object in {region}?",
        "Identify {region} with a word or phrase.",
        "Which category fits {region} best?",
    ),
    "paint": (
        "Paint this: {caption}.",
        "Make a picture showing {caption}.",
        "I want an image of this: {caption}.",
        "Please draw {caption}.",
        "Create an illustration of {caption}.",
        "Show me {caption}.",
        "Could you generate a picture of this? {caption}.",
        "Turn these words into a picture: {caption}.",
        "Imagine {caption}.",
        "A new image, please: {caption}.",
    ),
    "painted": (
        "Done: {link}.",
        "Your image: {link}.",
        "Here is the picture {link}.",
        "I painted it for you {link}.",
        "This is what I see {link}.",
        "It could look like this {link}.",
    ),
    "edit": (
        "Change the photo as follows: {caption}.",
        "Apply this edit: {caption}.",
        "Please retouch: {caption}.",
        "Edit the picture: {caption}.",
        "In this image, {caption}.",
        "I would like you to {caption}.",
        "One change, please: {caption}.",
        "Modify what you see: {caption}.",
    ),
    "edited": (
        "Done: {link}.",
        "The new picture: {link}.",
        "Here is the changed image {link}.",
        "I edited it {link}.",
        "This is the result {link}.",
    ),
    **PERCEPTION,
    **POSE,
}
_SLOTS = {
    "{region}": "where regions are named",
    "{n}": "where they are counted",
    "{caption}": "where a picture is described",
    "{expression}": "where an object is described",
    "{classes}": "where classes are listed",
    "{keypoints}": "where keypoints are listed",
    "{link}": "where the answer points at its objects or pictures",
}
_PUNCTUATION = str.maketrans(dict.fromkeys(".,'!?\"()*#:;", "") | dict.fromkeys("-/", " "))


def load_templates(key: str, file: str | pathlib.Path | None = None) -> tuple[str, ...]:
    """The wordings of one kind of question.

    Args:
      key: a key of `TEMPLATES`.
      file: a JSON object with lists of one's own; None takes ours.

    Raises:
      DataError: the file lacks the key, or a wording lacks a slot that ours has.
    """
    if file is None:
        return TEMPLATES[key]
    content = read_json(file)
    own = content.get(key) if isinstance(content, dict) else None
    if not isinstance(own, list) or not own or not all(isinstance(text, str) for text in own):
        raise DataError("not a list of texts", file=file, field=key, remedy=f'write {{"{key}": ["..."]}}')
    slots = [slot for slot in _SLOTS if slot in TEMPLATES[key][0]]
    for number, text in enumerate(own):
        lacking = [slot for slot in slots if slot not in text]
        if lacking:
            raise DataError(
                f"the wording {text!r} lacks the slot {' and '.join(lacking)}",
                file=file,
                record=number,
                field=key,
                remedy="; ".join(f"put {slot} {_SLOTS[slot]}" for slot in lacking),
            )
    return tuple(own)


def pick(templates: Sequence[str], rng: np.random.Generator | None) -> str:
    """A random wording; the first one if `rng` is None, as for tests."""
    return templates[0 if rng is None else int(rng.integers(len(templates)))]


def clean_phrase(text: str) -> str:
    """A phrase in lower case without punctuation, as the official data write expressions and classes."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def clean_name(text: str) -> str:
    """The name of a class or keypoint in the same form, with blanks for underscores."""
    return clean_phrase(text.replace("_", " "))


def as_sentence(text: str) -> str:
    """The form of all short answers: lower case, a capital in front, one full stop at the end."""
    text = text.strip().lower().rstrip(".")
    return text[:1].upper() + text[1:] + "."
