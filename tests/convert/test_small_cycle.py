# SPDX-License-Identifier: Apache-2.0
"""All 4,740 tensors of the released layout, with smaller widths: in, out, and equal bit by bit."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import fake_checkpoint
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.pretrained import from_pretrained
from vllm2_jax.sharding.mesh import make_mesh
from vllm2_jax.sharding.strategies import STRATEGIES
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.released import open_released
from vllm2_jax.train.streaming import write_orbax

MB = 10**6


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "official"
    fake_checkpoint.write(folder, fake_checkpoint.small(), fake_checkpoint.CONFIG_SMALL, shard_bytes=30 * MB)
    return folder


def test_there_and_back(tmp_path, official):
    written = []
    released = open_released(official)
    write_orbax(released, tmp_path / "ours", report=written.append)
    assert sum(written) == released.size
    # `reopen` gives the same, see `test_full_cycle`; here it would take half of the time.
    write_official(Export.plan(tmp_path / "ours", released), tmp_path / "back", shard_bytes=20 * MB)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    listed = fake_checkpoint.small()
    assert index["weight_map"].keys() == listed.keys()
    for file in sorted(set(index["weight_map"].values())):
        assert (tmp_path / "back" / file).stat().st_size < 20.2 * MB
        for name, got in load_file(tmp_path / "back" / file).items():
            assert index["weight_map"].pop(name) == file
            want = fake_checkpoint.value(name, *listed[name])
            assert (got.dtype, got.shape) == (want.dtype, want.shape), name
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8), name)
    assert not index["weight_map"]


def test_decoders_that_are_not_wanted_are_not_loaded(official):
    strategy = STRATEGIES["single"]
    options = {"mesh": make_mesh(strategy, jax.devices()[:1], {}), "strategy": strategy}
    model = from_pretrained(official, **options, decoders=["grounding_dino"])
    assert list(model.decoders) == ["grounding_dino"]
    name = "gdino.model.decoder.layer_norm.weight"
    got = model.decoders["grounding_dino"].decoder.norm.scale[...]
    np.testing.assert_array_equal(got, fake_checkpoint.value(name, got.shape, "BF16"))
    with pytest.raises(ConversionError, match="no component decoders/painter"):
        from_pretrained(official, **options, decoders=["painter"])
