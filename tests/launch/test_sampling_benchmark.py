# SPDX-License-Identifier: Apache-2.0
"""Inputs and estimates of the sampling benchmarks; how fast is for `python -m launch.benchmark` to say."""

import argparse

import jax.numpy as jnp
import numpy as np
import pytest

from launch import sampling
from launch.estimate import cycles, estimate

TEXT = """\
%cond (a: s32[]) -> pred[] {
  %n = s32[] constant(52)
}
%inner.cond (a: s32[]) -> pred[] {
  %n = s32[] constant(3)
}
%inner.body (a: s32[]) -> s32[] {
  %x = f32[] add(%a, %a), backend_config={"estimated_cycles":"7"}
}
%body (a: s32[]) -> s32[] {
  %x = f32[] add(%a, %a), backend_config={"estimated_cycles":"100"}
  %y = s32[] while(%t), condition=%inner.cond, body=%inner.body, metadata={}
}
ENTRY %main (a: s32[]) -> s32[] {
  %x = f32[] add(%a, %a), backend_config={"estimated_cycles":"1000"}
  %y = s32[] while(%t), condition=%cond, body=%body, metadata={}
}
"""


def test_loops_count_as_often_as_they_turn():
    assert cycles(TEXT) == 1000 + 52 * (100 + 3 * 7)


def test_our_side_samples_the_inputs(monkeypatch):
    monkeypatch.setattr(sampling, "LEVELS", ((4, 5), (2, 3)))
    monkeypatch.setattr(sampling, "CELLS", 26)
    for queries in (26, 7):
        arrays = sampling.inputs(queries)
        assert arrays["locations"].shape == (1, queries, 8, 2, 4, 2)
        np.testing.assert_allclose(arrays["weights"].sum((-2, -1)), 1, rtol=1e-5)
        assert arrays["locations"].min() < 0 < 1 < arrays["locations"].max()  # some points lie outside
        out, *gradients = sampling.ours_on(sampling.sample, arrays, backward=True)()
        assert out.shape == (1, queries, 256)
        for gradient, name in zip(gradients, ("value", "locations", "weights"), strict=True):
            assert gradient.shape == arrays[name].shape


def test_heads_on_several_devices_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(sampling, "LEVELS", ((4, 5), (2, 3)))
    monkeypatch.setattr(sampling, "CELLS", 26)
    arrays = sampling.inputs(26)
    one, several = sampling.ours_on(sampling.sample, arrays, True)(), sampling.by_heads(arrays, True, 4)()
    assert {len(x.sharding.device_set) for x in several} == {4}
    for whole, split in zip(one, several, strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)


def test_devices_have_to_divide_the_heads():
    with pytest.raises(SystemExit, match="--devices 3: has to divide 8 heads"):
        sampling.deformable(argparse.Namespace(devices=3, rounds=1))


@pytest.mark.tpu_compile
def test_a_program_has_estimates():
    found = estimate(lambda x: jnp.tanh(x @ x), [np.ones((512, 512), np.float32)], "v5e:2x2")
    assert found["accessed MiB"] >= 2  # reads and writes 1 MiB
    assert found["million cycles"] > 0
