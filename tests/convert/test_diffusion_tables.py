# SPDX-License-Identifier: Apache-2.0
"""Weight tables of the decoders that paint, at full size by names and shapes, and small ones by numbers."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests.decoders.diffusion.tiny import config, make, painter
from vllm2_jax.convert import diffusion
from vllm2_jax.convert.rules import Plan, export, load
from vllm2_jax.decoders.diffusion.config import PainterConfig
from vllm2_jax.decoders.diffusion.painter import Painter
from vllm2_jax.nn.paths import flatten_paths


def test_stable_diffusion_1_5_has_its_tensors():
    """Counts of tensors and parameters as in the public checkpoints."""
    sizes = PainterConfig()
    model = jax.eval_shape(lambda: Painter(sizes, link_width=4096, rngs=nnx.Rngs(0)))
    leaves = {path: tuple(leaf.shape) for path, leaf in flatten_paths(model)[0].items()}
    keys = list(Plan.make(diffusion.table(sizes), leaves).parts)
    tensors = {
        prefix: sum(key.startswith(prefix) for key in keys)
        for prefix in ("sd_unet.", "sd_vae.", "sd_text_encoder.", "emb_proj.", "llm2sd_mapper")
    }
    assert tensors == {
        "sd_unet.": 686,
        "sd_vae.": 248,
        "sd_text_encoder.": 196,
        "emb_proj.": 4,
        "llm2sd_mapper": 35,
    }
    parts = {part: 0 for part in ("unet", "vae", "text", "mapper")}
    for path, shape in leaves.items():
        parts[path.split("/")[0]] += math.prod(shape)
    assert parts == {"unet": 859_520_964, "vae": 83_653_863, "text": 123_060_480, "mapper": 20_338_944}


@pytest.mark.parametrize("edits", [False, True])
def test_out_and_in_again(edits):
    table = diffusion.table(config(edits=edits))
    tensors = export(painter(edits), table)
    assert tensors["sd_unet.conv_in.weight"].shape == (16, 8 if edits else 4, 3, 3)
    assert tensors["sd_unet.mid_block.attentions.0.proj_in.weight"].shape == (32, 32, 1, 1)
    assert tensors["sd_vae.quant_conv.weight"].shape == (8, 8, 1, 1)
    back = load(tensors, table, jax.eval_shape(lambda: make(edits=edits)))
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(painter(edits)), strict=True):
        np.testing.assert_array_equal(one, other)
