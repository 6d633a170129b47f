# SPDX-License-Identifier: Apache-2.0
"""Swin of the pose decoder: the maps of stages 2 to 4, their masks and positions."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import swin as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.sine import sine_2d
from vllm2_jax.ops.levels import shrink
from vllm2_jax.vision.swin import Swin, SwinConfig


def config(folder: pathlib.Path) -> SwinConfig:
    """Sizes from a golden set's config; ratio, patch and rates are the official class's defaults."""
    sizes, stages = goldens.config(folder)["swin"], goldens.config(folder)["config"]["return_interm_indices"]
    return SwinConfig(
        width=sizes["embed_dim"],
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["num_heads"]),
        window=sizes["window_size"],
        stages=tuple(stages),
        drop_path=0.2,
        drop="linear",
    )


def build(folder: pathlib.Path) -> Swin:
    """The golden backbone in float32."""
    sizes = config(folder)
    abstract = jax.eval_shape(lambda: Swin(sizes, dtype=jnp.float32, rngs=Rngs(0)))
    return load(goldens.weights(folder, "weights", "backbone.0."), convert.original_table(sizes), abstract)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    inputs, data = goldens.arrays(folder, "inputs"), goldens.arrays(folder, "backbone")
    sizes = goldens.config(folder)["config"]
    with jax.default_matmul_precision("highest"):
        maps = jax.jit(Swin.__call__)(build(folder), jnp.asarray(inputs["images"].transpose(0, 2, 3, 1)))
    for i, found in enumerate(maps):
        yield f"backbone map {i}", np.asarray(found).transpose(0, 3, 1, 2), data[f"backbone.feat{i}"]
        padding = shrink(jnp.asarray(inputs["mask"]), found.shape[1:3])
        yield f"backbone mask {i}", np.asarray(padding), data[f"backbone.mask{i}"]
        positions = sine_2d(
            ~padding,
            sizes["hidden_dim"],
            temperature_h=float(sizes["pe_temperatureH"]),
            temperature_w=float(sizes["pe_temperatureW"]),
        )
        yield f"positions {i}", np.asarray(positions).transpose(0, 3, 1, 2), data[f"backbone.pos{i}"]
