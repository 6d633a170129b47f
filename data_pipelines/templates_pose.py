# SPDX-License-Identifier: Apache-2.0
"""Wordings of questions about keypoints and of the answers, which hold a link for each name.

The wordings are this project's own; `data_pipelines.templates` lists them. The official code puts two
together: one that asks for the objects, one for their keypoints.
"""

from collections.abc import Mapping

POSE: Mapping[str, tuple[str, ...]] = {
    "pose": (
        "Detect {classes}. Then locate these keypoints: {keypoints}.",
        "Find every one of {classes}. Where are the points {keypoints}?",
        "Which of these can you see: {classes}? Mark the joints {keypoints} of each.",
        "Look for {classes} and estimate the pose points {keypoints}.",
        "I need all of {classes}, with the keypoints {keypoints}.",
        "Mark {classes} in the picture. For each one, point at {keypoints}.",
        "Estimate the pose of {classes}. The points are {keypoints}.",
        "Box {classes}. Then show me where {keypoints} are.",
        "Where are {classes}? Give the positions of {keypoints}, too.",
        "Locate {classes} and, on every one, {keypoints}.",
    ),
    "posed": (
        "Found: {classes}. Keypoints: {keypoints}.",
        "Here they are: {classes}, with the points {keypoints}.",
        "I detected {classes} and located {keypoints}.",
        "The objects: {classes}. The joints: {keypoints}.",
        "Marked: {classes}. Their points: {keypoints}.",
        "These are {classes}. I placed {keypoints}.",
    ),
}
