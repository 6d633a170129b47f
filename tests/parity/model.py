# SPDX-License-Identifier: Apache-2.0
"""Builds a `VisionLLMv2` and its inputs from a golden folder."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import goldens
from tests.parity.weights import load
from vllm2_jax import decoders
from vllm2_jax.batch import IMAGE, LINK, REGION, TEXT, Inputs, Weighted
from vllm2_jax.convert import lora, visionllmv2
from vllm2_jax.llm.llama import LlamaConfig
from vllm2_jax.model import ModelConfig, VisionLLMv2
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.rope import RopeConfig
from vllm2_jax.tokens import LINKS, QueryCounts
from vllm2_jax.vision.bridge import BridgeConfig
from vllm2_jax.vision.clip import CLIPConfig
from vllm2_jax.vision.internvit import InternViTConfig
from vllm2_jax.vision.regions import RegionConfig


class Probe(nnx.Module):
    """A decoder whose loss is the sum of its link states times a given array."""

    def __init__(self, config: None, *, link_width: int, rngs: nnx.Rngs):
        del config, link_width, rngs

    def loss(self, links, targets, *, key) -> dict[str, Weighted]:
        del key
        states = jnp.where(links.valid[..., None, None], links.states, 0)
        return {"projection": ((states * targets).sum(), jnp.ones(()))}

    def predict(self, links, inputs, *, key):
        del inputs, key
        return links.states

    @staticmethod
    def example(rows: int, config: None):
        del config
        return jax.ShapeDtypeStruct((rows, 1, 4, 48), jnp.float32)


decoders.DECODERS["probe"] = Probe
visionllmv2.DECODER_TABLES["probe"] = ("probe.", lambda config: [])


def config_for(folder: pathlib.Path, name: str) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Sizes and official weights of the model that one `full_*` or `generate_*` file ran."""
    sizes = goldens.config(folder)
    intern = name == "full_intern"
    tensors = goldens.weights(folder, name if intern else "full_llama")
    if name == "full_pixelshuffle":
        tensors = {key: value for key, value in tensors.items() if not key.startswith("vl_bridge.")}
        tensors |= goldens.weights(folder, "full_pixelshuffle_bridge")
    if name == "generate_biased":
        tensors |= goldens.weights(folder, "generate_biased_lm_head")
    shuffle = intern or name == "full_pixelshuffle"
    vision = internvit_config(sizes, "internvit") if intern else clip_config(sizes)
    llm = llama_config(sizes["internlm2" if intern else "llama"])
    depth = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith("llm.model.layers."))
    config = ModelConfig(
        vision=vision,
        vision_layer=-1 if intern else -2,
        bridge=BridgeConfig(
            kind="internvl_mlp" if shuffle else "mlp2x_gelu",
            pixel_shuffle=shuffle,
            width_in=vision.width,
            width_out=llm.width,
        ),
        regions=RegionConfig(
            hidden=sizes["region_encoder_in_full_model"]["hidden_dim"],
            width=vision.width,
            width_out=llm.width,
            patch=vision.patch,
        ),
        llm=dataclasses.replace(llm, depth=depth),
        queries=QueryCounts(sizes["num_embs"], sizes["num_embs_gen"]),
        decoders={"probe": None},
        dtype="float32",
    )
    return config, tensors


def clip_config(sizes: dict) -> CLIPConfig:
    c = sizes["clip"]
    return CLIPConfig(
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp=c["intermediate_size"],
        image_size=c["image_size"],
        patch=c["patch_size"],
        eps=c["layer_norm_eps"],
    )


def internvit_config(sizes: dict, key: str) -> InternViTConfig:
    c = sizes[key]
    return InternViTConfig(
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp=c["intermediate_size"],
        image_size=c["image_size"],
        patch=c["patch_size"],
        eps=c["layer_norm_eps"],
        qkv_bias=c["qkv_bias"],
        qk_norm=c["qk_normalization"],
    )


def llama_config(c: dict) -> LlamaConfig:
    return LlamaConfig(
        vocab=c["vocab_size"],
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"],
        mlp=c["intermediate_size"],
        rms_eps=c["rms_norm_eps"],
        rope=RopeConfig(theta=float(c.get("rope_theta", 10_000)), max_positions=c["max_position_embeddings"]),
        qkv_bias=c.get("bias", False),
        out_bias=c.get("bias", False),
    )


def build(config: ModelConfig, tensors: dict[str, np.ndarray]) -> VisionLLMv2:
    """The model with official weights."""
    abstract = jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0)))
    names = visionllmv2.names_of(tensors)
    return load(lora.plain_names(tensors), visionllmv2.table(config, names), abstract)


def inputs_for(data: dict[str, np.ndarray], config: ModelConfig, ids: dict[str, int]) -> Inputs:
    """One group with all rows of an official forward pass; the maps follow core_model sections 5 to 7."""
    tokens = data["in/input_ids"]
    images = goldens.listed(data, "images") or [image[None] for image in data["in/images"]]
    start = np.cumsum([0] + [len(tiles) for tiles in images])
    per_tile = config.tokens_per_tile
    source, index = np.full(tokens.shape, TEXT), np.zeros(tokens.shape, int)
    patch = tokens == ids["imp"]
    with_image = [b for b in range(len(tokens)) if patch[b].any()]
    rows = np.concatenate(
        [np.arange(start[b] * per_tile, start[b + 1] * per_tile) for b in with_image] or [np.arange(0)]
    )
    # `full_mismatch` has twice the columns: the official code lays the features down again.
    source[patch], index[patch] = IMAGE, np.resize(rows, patch.sum())
    region = tokens == ids["reg"]
    source[region], index[region] = REGION, np.arange(region.sum())
    for link in LINKS:
        for b, column in np.argwhere(tokens == ids[link.token]):
            n = config.queries.of(link.bank)
            source[b, column + 1 : column + 1 + n] = LINK
            index[b, column + 1 : column + 1 + n] = config.queries.offset(link.bank) + np.arange(n)

    masks, tile = [], []
    for b, regions in enumerate(goldens.listed(data, "regions")):
        splits = data.get(f"in/num_splits.{b}")
        masks.append(regions)
        last = [start[b + 1] - 1] * len(regions)
        tile += last if splits is None else list(start[b] + np.cumsum(splits)[: len(regions)] - 1)
    size = config.vision.image_size
    tiles = np.concatenate(images).transpose(0, 2, 3, 1)
    valid = data.get("in/attention_mask", np.ones(tokens.shape)).astype(int)
    return Inputs(
        tokens=tokens[None],
        source=source[None],
        index=index[None],
        positions=np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)[None].copy(),
        segments=valid[None],
        tiles=tiles[None],
        masks=np.concatenate(masks or [np.zeros((0, size, size))]).astype(np.uint8)[None],
        mask_tile=np.array(tile, int)[None],
    )


def link_rows(data: dict[str, np.ndarray], inputs: Inputs, ids: dict[str, int], config: ModelConfig):
    """((link_position, link_valid), projection) of the golden's decoder, or (None, None) without one."""
    tokens = inputs.tokens[0]
    if "gdino.R" in data or "unipose.R" in data:
        projection = data.get("gdino.R", data.get("unipose.R"))
        capacity, n = projection.shape[1:3]
        position = np.zeros((len(tokens), capacity, n), int)
        valid = np.zeros((len(tokens), capacity), bool)
        for b, row in enumerate(tokens):
            starts = [c for c in range(len(row)) if row[c] in (ids["det"], ids["grd"], ids["seg"])]
            poses = [c for c in range(len(row)) if row[c] == ids["pose"]]
            places = list(range(len(starts)))
            if "unipose.R" in data:  # objects fill the first half of the places, keypoints the second
                places += [capacity // 2 + i for i in range(len(poses))]
            for place, column in zip(places, starts + poses, strict=True):
                position[b, place], valid[b, place] = column + 1 + np.arange(n), True
        return (position[None], valid[None]), projection[None]
    for prefix in ("sd", "ip2p"):
        if f"{prefix}.R" in data:
            n = config.queries.generation
            order = np.argsort(data[f"{prefix}.index"][:, 0])
            columns = data[f"{prefix}.index"][order, 1]
            position = (columns[:, None, None] + 1 + np.arange(n))[None]
            return (position, np.ones((1, len(tokens), 1), bool)), data[f"{prefix}.R"][order][None, :, None]
    return None, None
