# SPDX-License-Identifier: Apache-2.0
"""Small functions that only the pose decoder has: similarity of keypoints, their layout, its class layer."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.unipose_inputs import BODY_POINTS
from tests.parity.weights import load
from vllm2_jax.convert.layers import linear, norm, packed_attention
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.encoder import ClassLayer
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.ops.keypoints import SIGMAS, oks


class Small(GroundingDINOConfig):
    """A class layer has no group norm, so its width is free."""

    def __post_init__(self):
        pass


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "units")
    yield "spreads of keypoints", SIGMAS, data["oks.sigmas"]
    points, truth = (jnp.asarray(data[f"oks.{name}"].reshape(-1, BODY_POINTS, 2)) for name in ("pred", "gt"))
    visible, area = jnp.asarray(data["oks.v"] > 0), jnp.asarray(data["oks.area"])

    def alike(points: jax.Array) -> jax.Array:
        return oks(points, truth, visible, area, jnp.asarray(SIGMAS))

    found, pull = jax.vjp(alike, points)
    # The official overlap has no lower bound yet; its loss has.
    bounded = np.maximum(data["oks.overlap"], 1e-6)
    yield "similarity of keypoints", np.asarray(found), bounded
    yield "loss of keypoints", 1 - np.asarray(found), data["oks.loss_per_instance"]
    (gradient,) = pull(-jnp.ones_like(found))
    yield "grad of keypoints", np.asarray(gradient), data["oks.grad_pred"].reshape(gradient.shape)

    by_point = data["layout.xyzxyz"].reshape(1, -1, 3)
    by_kind = np.concatenate([by_point[..., :2].reshape(1, -1), by_point[..., 2]], axis=1)
    yield "layout of keypoints", by_kind, data["layout.xyxyzz"]
    yield from _class_layer(data)


def _class_layer(data: dict[str, np.ndarray]) -> Iterator[Case]:
    """Three rows with masks of their own: heads look through the masks of other rows."""
    weights = {key[len("textlayer.param.") :]: x for key, x in data.items() if "textlayer.param" in key}
    rows, width = data["textlayer.src"].shape[1:]
    heads = 2
    config = Small(
        width=width,
        encoder_heads=2 * heads,
        encoder_mlp=2 * len(weights["linear1.bias"]),
        faithful=True,
    )
    table = [
        *packed_attention("self_attn", "attention", heads),
        *(row for i in (1, 2) for row in norm(f"norm{i}", f"norm{i}")),
        *(row for i in (1, 2) for row in linear(f"linear{i}", f"mlp/layers/{i - 1}")),
    ]
    abstract = jax.eval_shape(lambda: ClassLayer(config, dtype=jnp.float32, rngs=Rngs(0)))
    layer = load(weights, table, abstract)
    source, places = (jnp.asarray(data[f"textlayer.{name}"].swapaxes(0, 1)) for name in ("src", "pos"))
    found = layer(source, places, jnp.asarray(~data["textlayer.blocked"]))
    yield f"class layer of {rows} rows", np.asarray(found), data["textlayer.out"].swapaxes(0, 1)
