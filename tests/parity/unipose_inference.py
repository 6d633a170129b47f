# SPDX-License-Identifier: Apache-2.0
"""What the pose decoder says of pictures, with the official mask among keypoints and with the right one."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from tests.parity import Case, goldens, unipose_inputs
from tests.parity.unipose_model import build, config, forward, inputs, logits
from vllm2_jax.decoders.unipose.model import UniPose


def cases(folder: pathlib.Path, suffixes: Sequence[str] = ("_small", "")) -> Iterator[Case]:
    for suffix in suffixes:
        yield from _one(folder, f"infer{suffix}", build(folder, config(folder, suffix)))
    if (folder / "infer_maskfix_small.npz").exists():
        model = build(folder, config(folder, "_small"))
        # The encoder keeps its official errors, as in the golden run; only who sees whom is put right.
        model.config = dataclasses.replace(model.config, faithful=False)
        yield from _one(folder, "infer_maskfix_small", model)


def _one(folder: pathlib.Path, name: str, model: UniPose) -> Iterator[Case]:
    pictures = unipose_inputs.samples(folder)
    points = unipose_inputs.places(pictures)[1]
    found = jax.jit(forward)(model, *inputs(folder, pictures)).figures
    want = goldens.arrays(folder, name)
    yield from logits(f"{name} classes", np.asarray(found.logits[-1]), want["pred_logits"])
    yield f"{name} boxes", np.asarray(found.boxes[-1]), want["pred_boxes"]
    keypoints = want["pred_keypoints"]
    count = unipose_inputs.BODY_POINTS
    xy = keypoints[..., : 2 * count].reshape(*keypoints.shape[:2], count, 2)
    # Free places depend on how many there are, unless all official ones are there.
    asked = np.asarray(unipose_inputs.keypoints(pictures))[:, None, :, None]
    yield f"{name} keypoints", found.keypoints[-1] * asked, xy[:, :, :points] * asked
    constant = 1 / (1 + np.exp(-1.0))  # the official third value, which we do not have
    yield (
        f"{name} third value",
        np.full_like(keypoints[..., 2 * count :], constant),
        keypoints[..., 2 * count :],
    )
