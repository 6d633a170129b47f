# SPDX-License-Identifier: Apache-2.0
"""Builds the pose decoder of a golden folder."""

import pathlib

import jax
import numpy as np
from flax import nnx

from tests.parity import Case, goldens, unipose_backbone, unipose_criterion
from vllm2_jax.convert import unipose as convert
from vllm2_jax.convert.rules import load
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.model import UniPose


def config(folder: pathlib.Path, suffix: str, *, faithful: bool = True) -> UniPoseConfig:
    """Sizes of the golden set; `suffix` says how many instances."""
    stored = goldens.config(folder)
    c = stored["config"]
    return UniPoseConfig(
        backbone=unipose_backbone.config(folder),
        width=c["hidden_dim"],
        queries=c["num_queries"],
        instances=stored["groups"]["small" if suffix else "official"],
        heads=c["nheads"],
        mlp=c["dim_feedforward"],
        points=c["dec_n_points"],
        encoder_layers=c["enc_layers"],
        box_layers=c["num_box_decoder_layers"],
        keypoint_layers=c["dec_layers"] - c["num_box_decoder_layers"],
        temperature=c["pe_temperatureH"],
        drop_path=c["fusion_droppath"],
        faithful=faithful,
        criterion=unipose_criterion.config(folder),
        dtype="float32",
    )


def build(folder: pathlib.Path, config: UniPoseConfig) -> UniPose:
    """The golden decoder in float32."""
    width = goldens.config(folder)["config"]["l_hidden_size"]
    abstract = jax.eval_shape(lambda: UniPose(config, link_width=width, rngs=nnx.Rngs(0)))
    return load(goldens.weights(folder, "weights"), convert.table(config), abstract)


def maps(x: np.ndarray) -> np.ndarray:
    """Feature maps with channels last."""
    return x.transpose(0, 2, 3, 1)


def logits(name: str, got: np.ndarray, want: np.ndarray) -> list[Case]:
    """Class logits: the official -inf stands for our `ABSENT`; either side may have more free places."""
    places = max(got.shape[-1], want.shape[-1])

    def widen(x: np.ndarray) -> np.ndarray:
        more = [(0, 0)] * (x.ndim - 1) + [(0, places - x.shape[-1])]
        return np.pad(np.where(np.isfinite(x), x, ABSENT), more, constant_values=ABSENT).astype(np.float32)

    got, want = widen(got), widen(want)
    there = want != ABSENT
    return [
        (f"{name}: which", got != ABSENT, there),
        (name, np.where(there, got, 0), np.where(there, want, 0)),
    ]
