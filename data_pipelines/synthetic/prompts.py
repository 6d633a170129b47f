# SPDX-License-Identifier: Apache-2.0
"""Wordings of the synthetic questions and answers of every task that names what it wants in a slot `{}`."""

import numpy as np

CAPTION = ("Describe the picture.", "What is in this picture?", "Write a caption.")
REGION = ("What is {}?", "Describe {}.", "What do you see at {}?")

QUESTIONS = {
    "det": ("Find every {} in the picture.", "Which of these can you detect here: {}?", "Mark all of {}."),
    "grd": ("Which object is the {}?", "Point at the {}.", "Show me the {}."),
    "seg": ("Partition the scene into {}.", "Draw one mask for each of {}.", "Segment {}."),
    "pose": ("Find every {}. Then locate these keypoints: {}.", "Detect {} with the joints {}."),
    "t2i": ("Paint this: {}", "Make a picture of this: {}", "I want to see this: {}"),
    "edit": ("{}", "Apply this change: {}", "Please do this: {}"),
}
ANSWERS = {
    "det": ("Found: {}.", "Here they are: {}."),
    "grd": ("It is {}.", "Here: {}."),
    "seg": ("The masks: {}.", "Partitioned into {}."),
    "pose": ("Found: {}. Keypoints: {}.", "Here they are: {}, with the joints {}."),
    "t2i": ("Done: {}.", "Your picture: {}."),
    "edit": ("Done: {}.", "The new picture: {}."),
}


def fill(wordings: tuple[str, ...], rng: np.random.Generator, *slots: str) -> str:
    """One of the wordings, its slots filled in order."""
    return wordings[rng.integers(len(wordings))].format(*slots)
