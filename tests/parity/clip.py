# SPDX-License-Identifier: Apache-2.0
"""CLIP's image encoder: every hidden state and the pooled output."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import clip as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.clip import CLIP, CLIPConfig


def config(sizes: dict) -> CLIPConfig:
    """Sizes from the `clip` part of a golden set's config."""
    return CLIPConfig(
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp=sizes["intermediate_size"],
        image_size=sizes["image_size"],
        patch=sizes["patch_size"],
        eps=sizes["layer_norm_eps"],
    )


def build(folder: pathlib.Path) -> CLIP:
    """The golden tower in float32."""
    sizes = config(goldens.config(folder)["clip"])
    abstract = jax.eval_shape(lambda: CLIP(sizes, dtype=jnp.float32, rngs=Rngs(0)))
    return load(goldens.weights(folder, "clip", "vis_encoder."), convert.table(sizes), abstract)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "clip")
    tower = build(folder)
    with jax.default_matmul_precision("highest"):
        pixels = jnp.asarray(data["pixel_values"].transpose(0, 2, 3, 1))
        states = tower.hidden_states(pixels, tuple(range(tower.config.depth + 1)))
        pooled = tower.pooled(states[-1])
    for i, state in enumerate(states):
        yield f"clip hidden state {i}", np.asarray(state), data[f"hidden_{i}"]
    yield "clip last hidden state", np.asarray(states[-1]), data["last_hidden_state"]
    yield "clip pooled", np.asarray(pooled), data["pooler_output"]
