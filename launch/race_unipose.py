# SPDX-License-Identifier: Apache-2.0
"""The race of the pose decoder at Swin-T size against the same operations written plainly in PyTorch.

One picture in float32, without denoising queries. Backbone, encoder, selection and layers of the other side
are transformers' (`launch/peers/torch_unipose.py`), where deformable attention is `grid_sample`; the keypoint
part is what the official code does: all instances with all their keypoints look at each other through a mask,
where ours cuts them into pieces. What else differs:

* Classes and keypoints are four vectors each here, one there, without a text model on either side. Classes
  see each other here, only their own phrase there; the work is the same.
* Boxes are computed for the chosen cells here, for all cells there.
* We make room for 50 objects, of which 10 exist; theirs computes with 10.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.race import Timed, filled, need, parameters, race, show
from vllm2_jax.batch import Links, mean
from vllm2_jax.decoders.unipose.config import CriterionConfig, UniPoseConfig
from vllm2_jax.decoders.unipose.model import UniPose
from vllm2_jax.decoders.unipose.targets import Capacity
from vllm2_jax.nn.rngs import Rngs

PIXELS, OBJECTS, ROOM = 800, 10, 50
# AP-10K's and COCO's. The official code always has room for 68 keypoints, which is 3,450 queries that look at
# each other instead of 900: training of the peer then took 12 GB at 256 pixels already.
CLASSES, KEYPOINTS = 54, 17
LINK_QUERIES, LINK_WIDTH = 4, 4096  # of the released model


def unipose(args: argparse.Namespace) -> dict[str, Any]:
    """Inference, and loss with the gradient of all weights."""
    need("torch")
    from launch.peers import torch_unipose

    pixels = args.pixels or PIXELS
    config = UniPoseConfig(dtype="float32", criterion=CriterionConfig(denoising=0))
    links, targets = make_rows(pixels)
    model = filled(lambda: UniPose(config, link_width=LINK_WIDTH, rngs=Rngs(0)))
    peer = torch_unipose.Peer(config, links.states[:, :, 0], targets, OBJECTS)
    print(f"parameters: ours {parameters(model):,}, peer {peer.parameters():,}")
    races: dict[str, dict[str, Timed]] = {
        "inference": {"ours": inference(model, links, targets), "peer": peer.predict},
        "train step": {"ours": training(model, links, targets), "peer": peer.train},
    }
    found = {}
    for part, sides in races.items():
        title = f"{part}, {pixels} pixels"
        found[title] = race(sides, args.rounds)
        show(title, found[title], 1, "pictures")
    return found


def make_rows(pixels: int) -> tuple[Links, dict[str, np.ndarray]]:
    """Random links and targets of one picture that fills its square."""
    if pixels < 1 or pixels % 32:
        raise SystemExit(f"--pixels {pixels}: has to be a multiple of 32")
    rng = np.random.default_rng(0)
    places = CLASSES + KEYPOINTS
    states = rng.normal(size=(1, places, LINK_QUERIES, LINK_WIDTH)).astype(np.float32)
    targets = {
        name: np.zeros(x.shape, x.dtype) for name, x in Capacity(pixels, ROOM, KEYPOINTS).arrays(1).items()
    }
    targets["image"][:] = rng.integers(0, 256, targets["image"].shape)
    targets["size"][:] = pixels
    targets["keypoint_ids"][:] = np.arange(KEYPOINTS)
    targets["boxes"][:, :, :2] = rng.uniform(0.3, 0.7, (1, ROOM, 2))
    targets["boxes"][:, :, 2:] = rng.uniform(0.05, 0.5, (1, ROOM, 2))
    targets["labels"][:] = rng.integers(0, CLASSES, (1, ROOM))
    targets["valid"][:, :OBJECTS] = True
    targets["area"][:] = targets["boxes"][:, :, 2:].prod(-1)
    targets["keypoints"][:] = rng.uniform(0, 1, targets["keypoints"].shape)
    targets["visibility"][:] = rng.integers(0, 3, targets["visibility"].shape)
    return Links(states, np.ones((1, places), bool)), targets


def inference(model: UniPose, links: Links, targets: dict[str, np.ndarray]) -> Timed:
    """Our answer, jitted."""
    run = jax.jit(lambda model, links, targets: model.predict(links, targets))
    placed = jax.device_put((model, links, targets))
    return lambda: jax.block_until_ready(run(*placed))


def training(model: UniPose, links: Links, targets: dict[str, np.ndarray]) -> Timed:
    """Our loss with its gradient, jitted; returns the loss."""

    def loss(model, links, targets, key):
        terms = model.loss(links, targets, key=key)
        return sum((mean(value) for value in terms.values()), jnp.zeros(()))

    run = jax.jit(jax.value_and_grad(loss))
    placed = jax.device_put((model, links, targets, jax.random.key(0)))

    def once() -> float:
        value, _ = jax.block_until_ready(run(*placed))
        return float(value)

    return once
