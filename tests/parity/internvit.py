# SPDX-License-Identifier: Apache-2.0
"""InternViT with query and key norms, and with biases; and its position table on a bigger grid."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import internvit as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.internvit import InternViT, InternViTConfig
from vllm2_jax.vision.positions import resize_positions

VARIANTS = {"qknorm": {"qk_norm": True, "qkv_bias": False}, "bias": {"qk_norm": False, "qkv_bias": True}}


def config(sizes: dict) -> InternViTConfig:
    """Sizes from the `internvit` part of a golden set's config."""
    return InternViTConfig(
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp=sizes["intermediate_size"],
        image_size=sizes["image_size"],
        patch=sizes["patch_size"],
        eps=sizes["layer_norm_eps"],
        qkv_bias=sizes["qkv_bias"],
        qk_norm=sizes["qk_normalization"],
    )


def build(folder: pathlib.Path, variant: str) -> InternViT:
    """One golden tower in float32."""
    sizes = dataclasses.replace(config(goldens.config(folder)["internvit"]), **VARIANTS[variant])
    abstract = jax.eval_shape(lambda: InternViT(sizes, dtype=jnp.float32, rngs=Rngs(0)))
    return load(goldens.weights(folder, "internvit", f"{variant}/"), convert.table(sizes), abstract)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "internvit")
    for variant in VARIANTS:
        tower = build(folder, variant)
        with jax.default_matmul_precision("highest"):
            pixels = jnp.asarray(data["pixel_values"].transpose(0, 2, 3, 1))
            states = tower.hidden_states(pixels, tuple(range(tower.config.depth + 1)))
        for i, state in enumerate(states):
            yield f"internvit {variant} hidden state {i}", np.asarray(state), data[f"{variant}/hidden_{i}"]
    for key in [key for key in data if "position_embedding" in key]:
        tower = build(folder, key.split("/")[0])
        grid = math.isqrt(data[key].shape[1] - 1)
        yield f"internvit {key}", np.asarray(resize_positions(tower.positions[...], grid)), data[key][0]
