# SPDX-License-Identifier: Apache-2.0
"""Training with branches dropped at random, from the recorded choices of the official run."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, unipose_criterion, unipose_inputs
from tests.parity.unipose_model import build, config
from vllm2_jax.decoders.unipose import denoising
from vllm2_jax.decoders.unipose.criterion import Criterion
from vllm2_jax.decoders.unipose.targets import read_picture, read_truth
from vllm2_jax.ops.keypoints import SIGMAS
from vllm2_jax.vision.swin import SwinConfig


class EqualRates(SwinConfig):
    """All blocks but the first drop equally often, as in the golden run."""

    def drop_rates(self, stage: int) -> list[tuple[float, float]]:
        """The first block keeps everything."""
        rates = [(self.drop_path, self.drop_path)] * self.depths[stage]
        return [(0.0, 0.0), *rates[1:]] if stage == 0 else rates


def cases(folder: pathlib.Path) -> Iterator[Case]:
    official = json.loads((folder / "train_droppath_small.json").read_text())
    calls = iter(official["calls"])
    sizes = config(folder, "_small")
    rate = official["calls"][0][1]
    backbone = EqualRates(**{**dataclasses.asdict(sizes.backbone), "drop_path": rate})
    model = build(folder, dataclasses.replace(sizes, backbone=backbone, drop_path=rate))
    pictures = unipose_inputs.samples(folder)
    links = unipose_inputs.links(folder, unipose_inputs.places(pictures))
    arrays = unipose_inputs.targets(folder, pictures)
    picture, truth = read_picture(arrays), read_truth(arrays)
    data = goldens.arrays(folder, "dn_small")
    recorded = {key[5:]: value for key, value in data.items() if key.startswith("draw.")}
    draws = unipose_inputs.draws(recorded, pictures, denoising.lay_out(truth, model.config))

    def kept(key: jax.Array, keep: float, shape: tuple[int, ...]) -> jax.Array:
        del key
        _, drop, rows = next(calls)
        assert np.isclose(keep, 1 - drop)
        return jnp.asarray(rows, bool).reshape(shape)

    # Without jit, loops over layers are Python's, and draws come in the order of the official run.
    with jax.disable_jit(), mock.patch.object(jax.random, "bernoulli", kept):
        outputs = model.forward(links, picture, truth=truth, draws=draws, key=jax.random.key(0))
    yield "recorded choices that are left", np.array(len(list(calls))), np.array(0)
    criterion = Criterion(model.config.criterion, truth, jnp.asarray(SIGMAS)[picture.keypoint_ids])
    weights = json.loads((folder / "losses_small.json").read_text())["weights"]
    for name, got, want in unipose_criterion.losses(
        official | {"weights": weights}, jax.jit(lambda outputs: criterion(outputs))(outputs)
    ):
        yield f"dropped branches, {name}", got, want
