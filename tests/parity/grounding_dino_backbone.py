# SPDX-License-Identifier: Apache-2.0
"""Swin of the grounding decoder: all four maps, and the masks at their sizes."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import swin as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.ops.levels import shrink
from vllm2_jax.vision.swin import Swin, SwinConfig

PREFIX = "model.backbone.conv_encoder.model."


def config(sizes: dict) -> SwinConfig:
    """Sizes from the `backbone` part of a golden set's config."""
    return SwinConfig(
        width=sizes["embed_dim"],
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["num_heads"]),
        window=sizes["window_size"],
        mlp_ratio=sizes["mlp_ratio"],
        patch=sizes["patch_size"],
        stages=tuple(i - 1 for i in sizes["out_indices"]),
        eps=sizes["layer_norm_eps"],
        drop_path=sizes["drop_path_rate"],
    )


def build(folder: pathlib.Path) -> Swin:
    """The golden backbone in float32."""
    sizes = config(goldens.config(folder)["backbone"])
    abstract = jax.eval_shape(lambda: Swin(sizes, dtype=jnp.float32, rngs=Rngs(0)))
    weights = goldens.weights(folder, "weights", PREFIX)
    return load(weights, convert.transformers_table(sizes), abstract)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    inputs, data = goldens.arrays(folder, "inputs"), goldens.arrays(folder, "backbone")
    with jax.default_matmul_precision("highest"):
        maps = jax.jit(Swin.__call__)(
            build(folder), jnp.asarray(inputs["pixel_values"].transpose(0, 2, 3, 1))
        )
    for i, found in enumerate(maps):
        yield f"backbone map {i}", np.asarray(found).transpose(0, 3, 1, 2), data[f"feature{i}"]
        mask = shrink(jnp.asarray(inputs["pixel_mask"]), found.shape[1:3])
        yield f"backbone mask {i}", np.asarray(mask), data[f"mask{i}"]
