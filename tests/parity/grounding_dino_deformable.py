# SPDX-License-Identifier: Apache-2.0
"""Deformable attention of the grounding decoder: bare, around points (encoder), around boxes (decoder)."""

import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import deformable as convert
from vllm2_jax.nn.deformable import DeformableAttention, sample
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.ops.levels import Shapes


def shapes_of(data: np.ndarray) -> Shapes:
    """Level sizes from a golden array."""
    return tuple((int(h), int(w)) for h, w in data)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    with jax.default_matmul_precision("highest"):
        data = goldens.arrays(folder, "deform_attn")
        yield from _core({name[5:]: x for name, x in data.items() if name.startswith("core/")})
        yield from _encoder(folder, data)
        yield from _decoder(folder, data)


def _core(data: dict[str, np.ndarray]) -> Iterator[Case]:
    shapes = shapes_of(data["spatial_shapes"])
    names = ("value", "locations", "weights")
    out, pull = jax.vjp(lambda v, *xs: sample(v, shapes, *xs), *[jnp.asarray(data[name]) for name in names])
    yield "sample", np.asarray(out), data["out"]
    for name, gradient in zip(names, pull(jnp.asarray(goldens.probe(out.shape, 0.3))), strict=True):
        yield f"sample grad/{name}", np.asarray(gradient), data[f"grad_{name}"]


def attention(folder: pathlib.Path, prefix: str, heads: int, levels: int, points: int) -> DeformableAttention:
    """One golden deformable attention in float32."""
    weights = goldens.weights(folder, "weights", prefix)
    width = weights["output_proj.bias"].size

    def make() -> DeformableAttention:
        return DeformableAttention(width, heads, levels, points, dtype=jnp.float32, rngs=Rngs(0))

    return load(weights, convert.table(heads, levels, points), jax.eval_shape(make))


def _gradients(apply: Callable, *inputs: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    out, pull = jax.vjp(apply, *[jnp.asarray(x) for x in inputs])
    gradients = pull(jnp.asarray(goldens.probe(out.shape, 0.3)))
    return np.asarray(out), [np.asarray(x) for x in gradients]


def _encoder(folder: pathlib.Path, data: dict[str, np.ndarray]) -> Iterator[Case]:
    sizes, name = goldens.config(folder)["gdino"], "enc_layer0_self_attn/"
    prefix = "model.encoder.layers.0.deformable_layer.self_attn."
    shapes = shapes_of(data[name + "spatial_shapes"])
    module = attention(
        folder, prefix, sizes["encoder_attention_heads"], len(shapes), sizes["encoder_n_points"]
    )
    positions = goldens.arrays(folder, "pos_embed")
    valid = jnp.asarray(data[name + "attention_mask_valid"])

    def apply(hidden, cells, references):
        query = hidden + positions["vision_pos_flat_plus_level_embed"]
        return module(query, cells, valid, references, shapes)

    hidden = goldens.arrays(folder, "fusion")["vision_out"]
    out, gradients = _gradients(apply, hidden, hidden, positions["encoder_reference_points"])
    yield "encoder out", out[:, ::3], data[name + "out_every3"]
    yield "encoder out, whole", goldens.stats(out), data[name + "out_stats"]
    yield from _compare(data, "encoder", name, gradients)


def _decoder(folder: pathlib.Path, data: dict[str, np.ndarray]) -> Iterator[Case]:
    sizes, name = goldens.config(folder)["gdino"], "dec_layer1_encoder_attn/"
    shapes = shapes_of(data[name + "spatial_shapes"])
    module = attention(
        folder,
        "model.decoder.layers.1.encoder_attn.",
        sizes["decoder_attention_heads"],
        len(shapes),
        sizes["decoder_n_points"],
    )
    valid = jnp.asarray(data[name + "attention_mask_valid"])

    def apply(hidden, cells, references):
        query = hidden + data[name + "position_embeddings"]
        return module(query, cells, valid, references, shapes)

    cells = goldens.arrays(folder, "two_stage")["encoder_vision"]
    out, gradients = _gradients(apply, data[name + "hidden_states"], cells, data[name + "reference_points"])
    yield "decoder out", out, data[name + "out"]
    yield from _compare(data, "decoder", name, gradients)


def _compare(
    data: dict[str, np.ndarray], title: str, name: str, gradients: list[np.ndarray]
) -> Iterator[Case]:
    head = data[name + "grad_hidden_states_head"]
    yield f"{title} grad/hidden, first", gradients[0][:, : head.shape[1]], head
    for part, gradient in zip(
        ("hidden_states", "encoder_hidden_states", "reference_points"), gradients, strict=True
    ):
        yield f"{title} grad/{part}, whole", goldens.stats(gradient), data[f"{name}grad_stats_{part}"]
