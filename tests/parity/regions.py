# SPDX-License-Identifier: Apache-2.0
"""The region encoder: all poolings, recorded draws of pixels, and the expectation over draws."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.weights import load
from vllm2_jax.convert import regions as convert
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.regions import RegionConfig, RegionEncoder


def build(folder: pathlib.Path, pooling: str) -> RegionEncoder:
    """The golden encoder of one pooling in float32."""
    sizes = goldens.config(folder)
    alone = sizes["region_encoder_standalone"]
    config = RegionConfig(
        hidden=alone["hidden_dim"],
        width=alone["embed_dim"],
        width_out=alone["out_dim"],
        patch=sizes["patch_size"],
        pooling=pooling,
    )
    abstract = jax.eval_shape(lambda: RegionEncoder(config, dtype=jnp.float32, rngs=Rngs(0)))
    return load(goldens.weights(folder, "region_encoder", f"{pooling}/"), convert.table(config), abstract)


def drawn(data: dict[str, np.ndarray], name: str) -> np.ndarray:
    """[levels, N, S, S]: 1 at the pixels that the official code drew."""
    points, counts = data[f"{name}/points_rc"], data[f"{name}/counts"]
    masks = np.zeros((*counts.shape, *data[f"{name}/masks"].shape[1:]), np.float32)
    for level, region in np.ndindex(counts.shape):
        rows, columns = points[level, region, : counts[level, region]].T.astype(int)
        masks[level, region, rows, columns] = 1
    return masks


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "region_encoder")
    images = jnp.asarray(data["images"].transpose(0, 2, 3, 1))
    features = tuple(jnp.asarray(data[f"feat_{level}"]) for level in range(3))
    for name in [key.removesuffix("/out") for key in data if key.endswith("/out")]:
        pooling = name.split(".")[0]
        encoder = build(folder, pooling)
        masks = jnp.asarray(data[f"{name}/masks"])
        levels = features[:1] if pooling == "cross_attn" else features
        with jax.default_matmul_precision("highest"):
            both = jnp.concatenate([images, masks[..., None].astype(images.dtype)], axis=-1)
            cells = np.asarray(encoder.mask_embedding(both))
            plain = encoder(images, masks, levels)
        if (key := f"{name}/mask_embedding") in data:
            yield f"regions {name} mask embedding", cells, data[key].transpose(0, 2, 3, 1)
        if pooling != "grid_sample":
            yield f"regions {name}", np.asarray(plain), data[f"{name}/out"]
            continue
        yield f"regions {name} all pixels", np.asarray(plain), data[f"{name}/expected_all_pixels"]
        with jax.default_matmul_precision("highest"):
            out = encoder(images, masks, levels, sampled_masks=jnp.asarray(drawn(data, name)))
        yield f"regions {name} recorded pixels", np.asarray(out), data[f"{name}/out"]
