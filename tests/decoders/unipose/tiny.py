# SPDX-License-Identifier: Apache-2.0
"""A pose decoder small enough for tests, and batches for it."""

import jax.numpy as jnp
import numpy as np

from tests.weights import randomized
from vllm2_jax.batch import Links
from vllm2_jax.decoders.unipose.config import CriterionConfig, UniPoseConfig
from vllm2_jax.decoders.unipose.model import UniPose
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.swin import SwinConfig

LINK_WIDTH, QUERIES_A_LINK, SIDE = 6, 2, 64

CONFIG = UniPoseConfig(
    backbone=SwinConfig(
        width=4, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=4, stages=(1, 2, 3), drop="linear"
    ),
    width=32,
    queries=12,
    instances=4,
    heads=4,
    mlp=16,
    points=2,
    encoder_layers=1,
    box_layers=1,
    keypoint_layers=2,
    criterion=CriterionConfig(denoising=4, labelbook=5),
    dtype="float32",
)


def build(config: UniPoseConfig = CONFIG) -> UniPose:
    return randomized(lambda: UniPose(config, link_width=LINK_WIDTH, rngs=Rngs(0)), std=0.2)


def batch(classes=(2, 1), keypoints=(3, 2), objects=(2, 1), rooms=(2, 3, 3), garbage=9):
    """Links and targets of rows that ask for so many classes and keypoints and show so many objects.

    `rooms` are the places for classes, keypoints and objects; free ones hold `garbage` that nothing may read.
    """
    rows, (room_c, room_p, room_n) = len(classes), rooms
    out = {name: [] for name in ("states", "valid", "image", "size")}
    targets = {
        "keypoint_ids": np.full((rows, room_p), abs(garbage), np.int32),
        "boxes": np.full((rows, room_n, 4), garbage, np.float32),
        "labels": np.full((rows, room_n), int(garbage > 0), np.int32),
        "valid": np.zeros((rows, room_n), bool),
        "area": np.full((rows, room_n), garbage, np.float32),
        "keypoints": np.full((rows, room_n, room_p, 2), garbage, np.float32),
        "visibility": np.full((rows, room_n, room_p), abs(garbage), np.int32),
    }
    for b in range(rows):
        rng = np.random.default_rng(b)  # a row is the same whatever the rooms and its neighbours
        c, p, n = classes[b], keypoints[b], objects[b]
        states = np.full((room_c + room_p, QUERIES_A_LINK, LINK_WIDTH), garbage, np.float32)
        states[:c] = rng.normal(size=(c, QUERIES_A_LINK, LINK_WIDTH))
        states[room_c : room_c + p] = rng.normal(size=(p, QUERIES_A_LINK, LINK_WIDTH))
        out["states"].append(states)
        out["valid"].append(np.r_[np.arange(room_c) < c, np.arange(room_p) < p])
        size = rng.integers(SIDE // 2, SIDE + 1, 2)
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[: size[0], : size[1]] = rng.integers(0, 256, (*size, 3))
        out["image"].append(image)
        out["size"].append(size.astype(np.int32))
        targets["keypoint_ids"][b, :p] = rng.permutation(17)[:p]
        targets["boxes"][b, :n] = np.concatenate(
            [rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.1, 0.4, (n, 2))], 1
        )
        targets["labels"][b, :n] = rng.integers(0, c, n) if c else 0
        targets["valid"][b, :n], targets["area"][b, :n] = True, rng.uniform(0.02, 0.2, n)
        targets["keypoints"][b, :n, :p] = rng.uniform(0, 1, (n, p, 2))
        targets["visibility"][b, :n, :p] = rng.integers(0, 3, (n, p))
        targets["visibility"][b, :n, p:] = 0
    links = Links(jnp.asarray(np.stack(out["states"])), jnp.asarray(np.stack(out["valid"])))
    targets |= {"image": np.stack(out["image"]), "size": np.stack(out["size"])}
    return links, {name: jnp.asarray(value) for name, value in targets.items()}
