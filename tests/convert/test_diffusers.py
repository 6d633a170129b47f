# SPDX-License-Identifier: Apache-2.0
"""Pipelines as folders: out and in again, with old names, and those that are of another kind."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.decoders.diffusion.tiny import config, make, painter
from vllm2_jax.convert.diffusers import load_pipeline, read_config, save_pipeline
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.decoders.diffusion.config import SamplingConfig

PARTS = ("unet", "vae", "text")


@pytest.fixture
def folder(tmp_path):
    save_pipeline(painter(True), tmp_path)
    return tmp_path


def equal(one, other):
    for part in PARTS:
        pairs = zip(jax.tree.leaves(getattr(one, part)), jax.tree.leaves(getattr(other, part)), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


def test_out_and_in_again(folder):
    sizes = config(edits=True)
    others = {name: getattr(sizes, name) for name in ("mapper", "drop_rate", "dtype")}
    # An end of 2 is an old config's of CLIP, whose tokenizer uses the last two ids. Nor is all about sampling
    # in a scheduler.
    text = dataclasses.replace(sizes.text, start=38, end=39)
    want = dataclasses.replace(sizes, text=text, sampling=SamplingConfig(sampler="ddim"))
    assert read_config(folder, **others) == want
    blank = jax.tree.map(np.zeros_like, painter(True))
    found = load_pipeline(folder, blank)
    equal(found, painter(True))
    assert not any(leaf.any() for leaf in jax.tree.leaves(blank.unet))  # what was given stays
    assert not any(leaf.any() for leaf in jax.tree.leaves(found.mapper))


def test_old_names_of_attention(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(file).items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        tensors[name] = value
    assert sum(".proj_attn." in name for name in tensors) == 4
    save_file(tensors, file)
    equal(load_pipeline(folder, jax.eval_shape(lambda: make(edits=True))), painter(True))


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("unet", {"use_linear_projection": True}, "unet: use_linear_projection is True, only False"),
        ("unet", {"attention_head_dim": [5, 10]}, "differs between levels"),
        ("unet", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "do not mirror"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'quick_gelu'"),
        ("scheduler", {"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction'"),
    ],
)
def test_pipelines_of_another_kind(folder, part, change, message):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = folder / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConversionError, match=message):
        read_config(folder)


def test_what_is_missing(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"vae/diffusion_pytorch_model.safetensors is missing"):
        load_pipeline(folder, painter(True))
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"unet/config.json is missing"):
        read_config(folder)
