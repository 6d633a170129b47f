# SPDX-License-Identifier: Apache-2.0
"""The grounding decoder of a golden folder, its inputs, and what the goldens' own measures mean."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, grounding_dino_backbone
from tests.parity.weights import load
from vllm2_jax.batch import Links
from vllm2_jax.convert import grounding_dino as convert
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig, GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs


def config(folder: pathlib.Path, *, faithful: bool = True) -> GroundingDINOConfig:
    """Sizes of a golden set, which was made by the official code as it is."""
    found = goldens.config(folder)
    sizes, constants = found["gdino"], found["module_constants"]
    return GroundingDINOConfig(
        backbone=grounding_dino_backbone.config(found["backbone"]),
        width=sizes["d_model"],
        levels=sizes["num_feature_levels"],
        queries=sizes["num_queries"],
        encoder_layers=sizes["encoder_layers"],
        encoder_heads=sizes["encoder_attention_heads"],
        encoder_mlp=sizes["encoder_ffn_dim"],
        encoder_points=sizes["encoder_n_points"],
        decoder_layers=sizes["decoder_layers"],
        decoder_heads=sizes["decoder_attention_heads"],
        decoder_mlp=sizes["decoder_ffn_dim"],
        decoder_points=sizes["decoder_n_points"],
        mask_width=sizes["mask_dim"],
        temperature=float(sizes["positional_embedding_temperature"]),
        dropout=float(sizes["dropout"]),
        drop_path=float(sizes["fusion_droppath"]),
        faithful=faithful,
        criterion=CriterionConfig(
            class_weight=sizes["class_weight"],
            box_weight=sizes["box_weight"],
            giou_weight=sizes["giou_weight"],
            mask_weight=sizes["mask_weight"],
            dice_weight=sizes["dice_weight"],
            class_cost=sizes["class_cost"],
            box_cost=sizes["bbox_cost"],
            giou_cost=sizes["giou_cost"],
            points=constants["loss_num_points"],
            oversample=constants["oversample_ratio"],
            importance=constants["importance_sample_ratio"],
            denoising=constants["dn_number"],
            label_noise=constants["label_noise_ratio"],
            box_noise=constants["box_noise_scale"],
            labelbook=constants["dn_labelbook_size"],
        ),
        dtype="float32",
    )


# What the committed part of the golden set has weights of.
AFTER_CELLS = ("class_encoder/", "selection/", "decoder/", "queries")


def build(folder: pathlib.Path) -> GroundingDINO:
    """The golden decoder with its weights; zeros where the folder has none."""
    sizes, width = config(folder), goldens.config(folder)["gdino"]["l_hidden_size"]
    tensors = goldens.weights(folder, "weights")
    leaves, treedef = flatten_paths(
        jax.eval_shape(lambda: GroundingDINO(sizes, link_width=width, rngs=Rngs(0)))
    )
    whole = any(name.startswith("model.backbone.") for name in tensors)
    there = {path: leaf for path, leaf in leaves.items() if whole or path.startswith(AFTER_CELLS)}
    loaded = load(tensors, convert.table(sizes), there)
    nothing = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items() if path not in loaded}
    return jax.tree.unflatten(treedef, [(nothing | loaded)[path] for path in leaves])


def links(data: dict[str, np.ndarray]) -> Links:
    """The network's text input."""
    return Links(jnp.asarray(data["text_query"]), jnp.asarray(data["text_query_masks"]))


def pixels(data: dict[str, np.ndarray]) -> jax.Array:
    """The padded pictures, channels last."""
    return jnp.asarray(data["pixel_values"].transpose(0, 2, 3, 1))


def probe(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """The goldens' fixed direction: cos(0.7 i + phase) over the flat index i."""
    count = int(np.prod(shape))
    return np.cos(0.7 * np.arange(count) + phase).astype(np.float32).reshape(shape)


def probed(outputs: tuple[jax.Array, ...]) -> jax.Array:
    """The scalar whose gradients a golden block holds."""
    return sum(jnp.vdot(x, probe(x.shape, 0.3 + j)) for j, x in enumerate(outputs))


def stats(x: np.ndarray) -> np.ndarray:
    """L2 norm, and the product with the probe, of a tensor in the official layout."""
    flat = np.asarray(x, np.float64).ravel()
    return np.array([np.sqrt(np.square(flat).sum()), flat @ np.cos(0.7 * np.arange(flat.size) + 0.3)])


def channels_first(x: np.ndarray) -> np.ndarray:
    """`[..., H, W, C] -> [..., C, H, W]`, the official layout."""
    return np.moveaxis(np.asarray(x), -1, -3)


def logits(name: str, got: np.ndarray, want: np.ndarray) -> list[Case]:
    """Class logits: the official -inf stands where ours are `ABSENT`, or beyond our places."""
    wide = np.full(want.shape, ABSENT, np.float32)
    wide[..., : got.shape[-1]] = got
    there = np.isfinite(want)
    return [
        (f"{name}: which classes", wide != ABSENT, there),
        (name, np.where(there, wide, 0), np.where(there, want, 0)),
    ]
