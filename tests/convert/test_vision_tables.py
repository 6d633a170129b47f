# SPDX-License-Identifier: Apache-2.0
"""Tables of towers, bridge and region encoder: total in both directions, on official names."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import clip, goldens, internvit, regions
from vllm2_jax.convert import bridge as bridge_table
from vllm2_jax.convert import clip as clip_table
from vllm2_jax.convert import internvit as internvit_table
from vllm2_jax.convert import regions as regions_table
from vllm2_jax.convert.rules import ConversionError, Plan, export, load
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.bridge import Bridge, BridgeConfig
from vllm2_jax.vision.clip import CLIP, CLIPConfig
from vllm2_jax.vision.internvit import InternViT
from vllm2_jax.vision.regions import RegionConfig, RegionEncoder

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "core"


def equal(back, tensors):
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_clip_round_trip():
    tower = clip.build(FOLDER)
    equal(export(tower, clip_table.table(tower.config)), goldens.weights(FOLDER, "clip", "vis_encoder."))


@pytest.mark.parametrize("variant", internvit.VARIANTS)
def test_internvit_round_trip(variant):
    tower = internvit.build(FOLDER, variant)
    tensors = goldens.weights(FOLDER, "internvit", f"{variant}/")
    equal(export(tower, internvit_table.table(tower.config)), tensors)


@pytest.mark.parametrize("pooling", ["grid_sample", "mean", "cross_attn"])
def test_regions_round_trip(pooling):
    encoder = regions.build(FOLDER, pooling)
    tensors = goldens.weights(FOLDER, "region_encoder", f"{pooling}/")
    equal(export(encoder, regions_table.table(encoder.config)), tensors)


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp3x_gelu", "internvl_mlp"])
def test_bridge_round_trip(kind):
    config = BridgeConfig(kind, False, 32, 48)
    tensors = goldens.weights(FOLDER, "connectors", f"{kind}.ps0/vl_bridge.")
    abstract = jax.eval_shape(lambda: Bridge(config, dtype=jnp.float32, rngs=Rngs(0)))
    table = bridge_table.table(config)
    equal(export(load(tensors, table, abstract), table), tensors)


def test_released_sizes_need_the_released_names():
    # The 7B checkpoint has 391 tensors of the tower, 4 of the bridge and 12 of the region encoder.
    parts = (
        (CLIPConfig(), CLIP, clip_table, 391, 303_507_456),
        (BridgeConfig(), Bridge, bridge_table, 4, 20_979_712),
        (RegionConfig(), RegionEncoder, regions_table, 12, None),
    )
    for config, module, table, tensors, numbers in parts:
        abstract = jax.eval_shape(lambda m=module, c=config: m(c, dtype=jnp.bfloat16, rngs=Rngs(0)))
        leaves = {path: leaf.shape for path, leaf in flatten_paths(abstract)[0].items()}
        assert len(Plan.make(table.table(config), leaves).parts) == tensors
        if numbers:
            assert sum(int(np.prod(shape)) for shape in leaves.values()) == numbers


def test_a_checkpoint_of_another_image_size_is_interpolated_on_request():
    small = internvit.build(FOLDER, "bias")
    config = dataclasses.replace(small.config, image_size=84)
    abstract = jax.eval_shape(lambda: InternViT(config, dtype=jnp.float32, rngs=Rngs(0)))
    tensors = goldens.weights(FOLDER, "internvit", "bias/")
    with pytest.raises(ConversionError, match=r"misshapen: embeddings.position_embedding \(1, 17, 32\)"):
        load(tensors, internvit_table.table(config), abstract)
    table = internvit_table.table(config, stored_image_size=56)
    model = load(tensors, table, abstract)
    want = goldens.arrays(FOLDER, "internvit")["bias/position_embedding_56_to_84"][0]
    np.testing.assert_allclose(model.positions[...], want, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be turned back"):
        export(model, table)
