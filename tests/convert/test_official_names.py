# SPDX-License-Identifier: Apache-2.0
"""Every tensor of the released 7B, by the official list of names and shapes, has exactly one use."""

import re
from collections import Counter

import numpy as np
import pytest

from configs.groups import STAGE2, STAGE3
from tests import fake_checkpoint
from vllm2_jax.convert import decoder_sizes
from vllm2_jax.convert.decoder_sizes import Seen
from vllm2_jax.convert.official import llm_config, model_config, vision_config
from vllm2_jax.convert.rules import ConversionError, Rule
from vllm2_jax.decoders.diffusion.config import EDIT, PainterConfig
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.nn.rope import RopeConfig
from vllm2_jax.train.released import make_plan

LISTED = fake_checkpoint.released_7b()
SHAPES = {name: shape for name, (shape, _) in LISTED.items()}


@pytest.fixture(scope="module")
def plan():
    return make_plan(model_config(fake_checkpoint.CONFIG_7B, SHAPES), SHAPES)


def test_all_4740_tensors_are_used_once(plan):
    assert len(SHAPES) == 4740
    uses = Counter([*plan.parts, *plan.aliases, *plan.buffers])
    assert set(uses.values()) == {1}
    assert uses.keys() == SHAPES.keys()
    plan.check(SHAPES)  # shapes too
    rules = [re.compile(row.pattern) for row in plan.table if isinstance(row, Rule)]
    for key in list(plan.parts)[::97]:
        assert sum(rule.fullmatch(key) is not None for rule in rules) == 1, key


def test_a_wrong_shape_or_a_name_too_many_is_seen(plan):
    shapes = SHAPES | {"unipose.transformer.decoder.hw.weight": (17, 3), "gdino.model.neck": (1,)}
    del shapes["sd.sd_unet.conv_out.bias"]
    with pytest.raises(ConversionError) as error:
        plan.check(shapes)
    assert len(str(error.value).splitlines()) == 4
    for line in (
        "misshapen: unipose.transformer.decoder.hw.weight",
        "unknown: gdino.model.neck",
        "missing: sd.",
    ):
        assert line in str(error.value)


def test_buffers_hold_what_the_official_code_computes(plan):
    assert len(plan.buffers) == 24
    for name, buffer in plan.buffers.items():
        want = fake_checkpoint.value(name, *LISTED[name])
        got = buffer.value()
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("groups", [STAGE2, STAGE3], ids=["stage2", "stage3"])
def test_what_is_trained_slowly_is_so_officially(plan, groups):
    """The official trainer multiplies the rate by a tenth for names that contain one of these."""
    slow = re.compile("backbone|sampling_offsets|reference_points|llm|region_encoder|vl_bridge")
    for key, part in plan.parts.items():
        for path in part.paths:
            rate = next(rate for pattern, rate in groups if re.search(pattern, path))
            assert rate in (None, 0.1 if slow.search(key) else 1.0), key


def test_sizes_of_decoders_come_from_shapes():
    sizes = model_config(fake_checkpoint.CONFIG_7B, SHAPES).decoders
    assert sizes["unipose"] == UniPoseConfig()
    assert sizes["stable_diffusion"] == PainterConfig()
    assert sizes["instruct_pix2pix"] == EDIT
    grounding = sizes["grounding_dino"]
    assert grounding.backbone.stages == (1, 2, 3)  # transformers' config; the official code demands four
    first = {f"hidden_states_norms.stage1.{name}": (96,) for name in ("weight", "bias")}
    four = SHAPES | {
        f"gdino.model.backbone.conv_encoder.model.{name}": shape for name, shape in first.items()
    }
    assert decoder_sizes.grounding_dino({}, Seen(four, "gdino.")) == GroundingDINOConfig()


LINEAR = RopeConfig(theta=1e6, scaling="linear", factor=2.0)


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({}, RopeConfig()),
        ({"rope_scaling": None, "rope_theta": 1e6}, RopeConfig(theta=1e6)),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 1e6}, LINEAR),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_theta": 1e6}, LINEAR),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e6}}, LINEAR),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6)),
    ],
)
def test_every_spelling_of_how_positions_turn(fields, rope):
    assert llm_config(fake_checkpoint.CONFIG_7B["llm_config"] | fields, {}).rope == rope


def test_choices_that_our_modules_do_not_have():
    tower, llm = (fake_checkpoint.CONFIG_7B[part] for part in ("vis_encoder_config", "llm_config"))
    with pytest.raises(ConversionError, match="rope_type is 'llama3', only none, linear, dynamic are known"):
        llm_config(llm | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, {})
    with pytest.raises(ConversionError, match="language model's hidden_act is 'gelu', only 'silu'"):
        llm_config(llm | {"hidden_act": "gelu"}, {})
    with pytest.raises(ConversionError, match="tower's hidden_act is 'gelu', only 'quick_gelu'"):
        vision_config({"vision_config": tower | {"hidden_act": "gelu"}})
    internvit = tower | {"qk_normalization": True, "hidden_act": "gelu"}
    assert vision_config(internvit).qk_norm
    with pytest.raises(ConversionError, match="tower's hidden_act is 'quick_gelu', only 'gelu'"):
        vision_config(internvit | {"hidden_act": "quick_gelu"})


def test_names_of_bridges():
    def kind(name):
        return model_config(fake_checkpoint.CONFIG_7B | {"vl_bridge_type": name}, {}).bridge.kind

    assert kind("internvl") == kind("internvl_mlp") == "internvl_mlp"
    with pytest.raises(ConversionError, match="vl_bridge_type: bridge 'qformer' is none of"):
        kind("qformer")
