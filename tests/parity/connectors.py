# SPDX-License-Identifier: Apache-2.0
"""Bridges of every kind, with and without pixel shuffle; pixel shuffle alone on an oblong grid."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import bridge as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.bridge import Bridge, BridgeConfig, pixel_shuffle


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "connectors")
    yield "pixel shuffle", np.asarray(pixel_shuffle(jnp.asarray(data["ps_in"]))), data["ps_out"]
    features = jnp.asarray(data["image_features"])
    for name in [key.removesuffix("/out") for key in data if key.endswith("/out")]:
        kind, shuffle = name.split(".ps")
        config = BridgeConfig(kind, shuffle == "1", features.shape[-1], data[f"{name}/out"].shape[-1])
        # An official `linear` is no Sequential: its names are `vl_bridge.weight` and `vl_bridge.bias`.
        tensors = goldens.weights(folder, "connectors", f"{name}/vl_bridge.")
        abstract = jax.eval_shape(lambda config=config: Bridge(config, dtype=jnp.float32, rngs=Rngs(0)))
        bridge = load(tensors, convert.table(config), abstract)
        with jax.default_matmul_precision("highest"):
            out = np.asarray(bridge(features))
        yield f"bridge {name}", out, data[f"{name}/out"]
