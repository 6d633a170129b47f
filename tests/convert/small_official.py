# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint in the official layout: config, index and two shards."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from vllm2_jax.convert import visionllmv2
from vllm2_jax.convert.official import model_config
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs

CONFIG = {
    "vis_encoder_config": {
        **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
        **{"image_size": 28, "patch_size": 14},
    },
    "llm_config": {
        **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
        **{"num_key_value_heads": 2, "vocab_size": 40, "rms_norm_eps": 1e-5},
    },
    "vis_output_layer": -2,
    "vl_bridge_type": "mlp2x_gelu",
    "num_embs": 4,
    "num_embs_gen": 8,
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def random_tensors() -> dict[str, np.ndarray]:
    """Official names and random bfloat16 arrays."""
    config = model_config(CONFIG, {"llm.model.embed_tokens.weight": (40, 24)})
    leaves, treedef = flatten_paths(jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0))))
    rng = np.random.default_rng(0)
    model = jax.tree.unflatten(
        treedef, [rng.normal(size=leaf.shape).astype(ml_dtypes.bfloat16) for leaf in leaves.values()]
    )
    return visionllmv2.export(model, config)


def write(folder: pathlib.Path, tensors, copies=()) -> pathlib.Path:
    """Two shards, an index and a config; `copies` are in both shards."""
    folder.mkdir()
    names = sorted(tensors)
    halves = (names[::2], [*names[1::2], *copies])
    for shard, keys in zip(SHARDS, halves, strict=True):
        save_file({key: np.ascontiguousarray(tensors[key]) for key in keys}, folder / shard)
    where = {key: shard for shard, keys in zip(SHARDS, halves, strict=True) for key in keys}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
