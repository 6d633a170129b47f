# SPDX-License-Identifier: Apache-2.0
"""The figure of a person: names of its keypoints, and random poses.

The 17 keypoints and their order are those of COCO. People face the viewer, so their left side is on the right
of the picture.
"""

import numpy as np

KEYPOINTS = (
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)
INDEX = {name: i for i, name in enumerate(KEYPOINTS)}

HEAD = (0.0, -0.70)  # centre of the head, in radii (half a person's height) around the person's centre
HEAD_RADIUS = 0.24
_ARM, _LEG = (0.34, 0.32), (0.40, 0.40)  # lengths of the upper and the lower part


def pose(rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """A random pose: 17 points (x, y) in the order of `KEYPOINTS`, in radii around the person's centre."""
    points = {
        "nose": (0.0, -0.66),
        "left eye": (0.09, -0.76),
        "right eye": (-0.09, -0.76),
        "left ear": (0.23, -0.72),
        "right ear": (-0.23, -0.72),
    }
    for side, sign in (("left", 1.0), ("right", -1.0)):
        # Angles from straight down, outwards. Elbows bend both ways, knees only a little.
        arm = rng.uniform(0.2, 2.5)
        leg = rng.uniform(0.0, 0.6)
        chains = (
            ((0.24, -0.38), _ARM, (arm, arm + rng.uniform(-1.0, 1.0)), ("shoulder", "elbow", "wrist")),
            ((0.15, 0.16), _LEG, (leg, leg + rng.uniform(-0.5, 0.1)), ("hip", "knee", "ankle")),
        )
        for (x, y), lengths, angles, names in chains:
            points[f"{side} {names[0]}"] = (sign * x, y)
            for name, length, angle in zip(names[1:], lengths, angles, strict=True):
                x, y = x + length * np.sin(angle), y + length * np.cos(angle)
                points[f"{side} {name}"] = (sign * x, y)
    lean = rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    joints = np.array([points[name] for name in KEYPOINTS]) @ turn.T
    return tuple((float(x), float(y)) for x, y in joints)
