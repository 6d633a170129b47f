# SPDX-License-Identifier: Apache-2.0
"""Small functions that the pose decoder shares with the grounding decoder, at their official sizes."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.grounding_dino_deformable import shapes_of
from vllm2_jax.nn.deformable import sample
from vllm2_jax.nn.sine import sine, sine_boxes
from vllm2_jax.ops import levels
from vllm2_jax.ops.boxes import giou, inverse_sigmoid
from vllm2_jax.ops.losses import sigmoid_focal


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "units")
    found = inverse_sigmoid(jnp.asarray(data["inverse_sigmoid.x"]), 1e-3)
    yield "inverse sigmoid", np.asarray(found), data["inverse_sigmoid.y"]
    for numbers in (4, 2):
        found = sine_boxes(jnp.asarray(data[f"sine256.pos{numbers}"]), 128)
        yield f"positions of {numbers} numbers", np.asarray(found), data[f"sine256.out{numbers}"]
    found = sine(jnp.asarray(data["text_pos256.ids"], jnp.int32), 256)
    yield "positions of classes", np.asarray(found), data["text_pos256.out"]
    found = giou(jnp.asarray(data["giou.a"]), jnp.asarray(data["giou.b"]), eps=1e-6)
    yield "giou", np.asarray(found), data["giou.out"]

    arrays = [jnp.asarray(data[f"msda.{name}"]) for name in ("value", "loc", "w")]
    found = sample(arrays[0], shapes_of(data["msda.shapes"]), *arrays[1:])
    yield "sample", np.asarray(found), data["msda.out"]
    yield from _proposals(data)
    yield from _focal(data)
    for name in [name for name in data if name.startswith("maskresize.") and "x" in name[11:]]:
        shape = data[name].shape[1:]
        yield name, np.asarray(levels.shrink(_padding(data), shape)), data[name]


def _padding(data: dict[str, np.ndarray]) -> jax.Array:
    """The full-size padding mask from which the resized ones were made; the largest has stride 8."""
    height, width = data["maskresize.in_valid_hw"]
    largest = max(x.shape for name, x in data.items() if name.startswith("maskresize.") and x.ndim == 3)
    mask = np.ones((1, largest[1] * 8, largest[2] * 8), bool)
    mask[:, :height, :width] = False
    return jnp.asarray(mask)


def _proposals(data: dict[str, np.ndarray]) -> Iterator[Case]:
    valid, at, masks = ~data["proposals.mask"], 0, []
    for h, w in shapes_of(data["proposals.shapes"]):
        masks.append(jnp.asarray(valid[:, at : at + h * w].reshape(-1, h, w)))
        at += h * w
    logits, usable = levels.proposals(masks)
    yield from goldens.finite("proposals", logits, data["proposals.out"])
    yield "proposals not usable", np.asarray(~usable), data["proposals.mem_zeroed"]


def _focal(data: dict[str, np.ndarray]) -> Iterator[Case]:
    mask, targets = jnp.asarray(data["focal.mask"])[:, None], jnp.asarray(data["focal.targets"])

    def total(logits):
        return jnp.where(mask, sigmoid_focal(jnp.where(mask, logits, 0.0), targets), 0.0).sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(data["focal.logits"]))
    yield "focal", np.asarray(value), data["focal.sum"]
    yield "focal grad", np.asarray(gradient), data["focal.grad"]
