# SPDX-License-Identifier: Apache-2.0
"""The race of the grounding decoder at Swin-T size against transformers' Grounding DINO in PyTorch.

One picture in float32. Theirs has no masks and no denoising queries, so ours goes without them in the race,
and a third side says what training with both costs. Both backbones, encoders, selections and decoders have
the same sizes. What still differs:

* Classes come from link states here, four vectors each; there from a text of as many tokens, one vector each,
  without the text model. Classes see each other here, only their own phrase there; the work is the same.
* Boxes are computed for the chosen cells here, for all cells there.
* We make room for 100 objects, of which 20 exist; theirs computes with 20.
* Ours draws the same kinds of dropout (0.1) as theirs, in training only.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.race import Timed, filled, need, parameters, race, show
from vllm2_jax.batch import Links, mean
from vllm2_jax.decoders.grounding_dino import criterion
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.targets import Capacity, read_picture, read_truth
from vllm2_jax.nn.rngs import Rngs

PIXELS, CLASSES, OBJECTS, ROOM = 800, 80, 20, 100
LINK_QUERIES, LINK_WIDTH = 4, 4096  # of the released model


def grounding_dino(args: argparse.Namespace) -> dict[str, Any]:
    """Forward pass, and loss with the gradient of all weights."""
    need("torch")
    from launch.peers import torch_grounding_dino

    pixels, config = args.pixels or PIXELS, GroundingDINOConfig(dtype="float32")
    links, targets = make_rows(pixels)
    model = filled(lambda: GroundingDINO(config, link_width=LINK_WIDTH, rngs=Rngs(0)))
    peer = torch_grounding_dino.Peer(config, links.states[:, :, 0], targets, OBJECTS)
    print(f"parameters: ours {parameters(model):,} (masks included), peer {peer.parameters():,}")
    races: dict[str, dict[str, Timed]] = {
        "forward": {"ours": forward(model, links, targets), "peer": peer.forward},
        "train step": {
            "ours": training(model, links, targets),
            "peer": peer.train,
            "ours, with masks": training(model, links, targets, whole=True),
        },
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
    states = rng.normal(size=(1, CLASSES, LINK_QUERIES, LINK_WIDTH)).astype(np.float32)
    shapes = Capacity(pixels, ROOM).arrays(1)
    targets = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    targets["image"][:] = rng.integers(0, 256, targets["image"].shape)
    targets["size"][:] = pixels
    targets["boxes"][:, :, :2] = rng.uniform(0.3, 0.7, (1, ROOM, 2))
    targets["boxes"][:, :, 2:] = rng.uniform(0.05, 0.5, (1, ROOM, 2))
    # Theirs can only name half as many classes: the other tokens are the stops between them.
    targets["labels"][:] = rng.integers(0, CLASSES // 2 - 1, (1, ROOM))
    targets["masks"][:] = rng.integers(0, 2, targets["masks"].shape)
    targets["valid"][:, :OBJECTS] = targets["mask_valid"][:, :OBJECTS] = True
    return Links(states, np.ones((1, CLASSES), bool)), targets


def forward(model: GroundingDINO, links: Links, targets: dict[str, np.ndarray]) -> Timed:
    """Our scores and boxes of the last layer, jitted: the compiler leaves out the masks."""

    @jax.jit
    def run(model, links, targets):
        picture = read_picture(targets)
        layers = model.forward(links, picture.image, picture.size).layers
        return layers.logits[-1], layers.boxes[-1]

    placed = jax.device_put((model, links, targets))
    return lambda: jax.block_until_ready(run(*placed))


@dataclasses.dataclass(frozen=True)
class BoxesOnly(criterion.Criterion):
    """The losses without those of masks."""

    def _mask(self, masks: Any, pairs: Any, samples: Any) -> dict[str, Any]:
        del masks, pairs, samples
        return {}


def training(
    model: GroundingDINO, links: Links, targets: dict[str, np.ndarray], *, whole: bool = False
) -> Timed:
    """Our loss with its gradient, jitted; `whole` adds masks and denoising queries. Returns the loss."""
    config = model.config

    def loss(model, links, targets, key):
        if whole:
            terms = model.loss(links, targets, key=key)
        else:
            picture = read_picture(targets)
            outputs = model.forward(links, picture.image, picture.size, key=key)
            few = dataclasses.replace(config.criterion, points=1)
            points = criterion.draw(key, 1, few)
            terms = BoxesOnly(few, read_truth(targets))(outputs, points)
        return sum((mean(value) for value in terms.values()), jnp.zeros(()))

    run = jax.jit(jax.value_and_grad(loss))
    placed = jax.device_put((model, links, targets, jax.random.key(0)))

    def once() -> float:
        value, _ = jax.block_until_ready(run(*placed))
        return float(value)

    return once
