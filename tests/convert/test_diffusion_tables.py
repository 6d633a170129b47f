# SPDX-License-Identifier: Apache-2.0
"""Weight tables of the decoders that paint, by numbers; their names at full size: `test_official_names`."""

import jax
import numpy as np
import pytest

from tests.decoders.diffusion.tiny import config, make, painter
from vllm2_jax.convert import diffusion
from vllm2_jax.convert.rules import export, load


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
