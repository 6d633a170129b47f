# SPDX-License-Identifier: Apache-2.0
"""Meshes from strategies: sizes that fit, and errors that say which to change."""

import jax
import pytest

from vllm2_jax.sharding import mesh
from vllm2_jax.sharding.strategies import STRATEGIES, Strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_meshes_over_eight_devices(name):
    made = mesh.make_mesh(STRATEGIES[name])
    assert made.size == (1 if name == "single" else 8)
    assert set(made.axis_names) == set(STRATEGIES[name].mesh)
    assert all(kind == jax.sharding.AxisType.Auto for kind in made.axis_types)


def test_sizes_replace_those_of_the_strategy():
    sizes = mesh.parse_sizes("fsdp=2, tensor=4")
    assert dict(mesh.make_mesh(STRATEGIES["fsdp_tp"], sizes=sizes).shape) == {
        "data": 1,
        "fsdp": 2,
        "tensor": 4,
    }


@pytest.mark.parametrize(
    "sizes, message",
    [
        ("tensor=3", r"tensor=3 do not divide the 8 devices a slice: .* change the size of tensor"),
        ("fsdp=2", r"product is 4; change the size of fsdp or tensor"),
        ("fsdp=-1,tensor=-1", "one of them may be -1"),
        ("tensr=2", "the mesh has no axis tensr; it has data, fsdp, tensor"),
        ("tensor", "'tensor' is not of the form axis=size"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh.make_mesh(STRATEGIES["fsdp_tp"], sizes=mesh.parse_sizes(sizes))


def test_slices_multiply_the_axis_that_crosses_them():
    made = mesh.abstract_mesh(STRATEGIES["multislice"], 512, slices=2)
    assert dict(made.shape) == {"data": 2, "fsdp": 256}
    with pytest.raises(ValueError, match="do not divide the 2 slices"):
        mesh.abstract_mesh(STRATEGIES["fsdp"], 512, slices=2)


def test_names_of_devices():
    assert len(mesh.find_devices("cpu:4")) == 4
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count=9"):
        mesh.find_devices("cpu:9")
    with pytest.raises(ValueError, match="no TPU topology 'v9z:2x2'"):
        mesh.find_devices("v9z:2x2")
    for name in ("cpu:0", "cpu:all"):
        with pytest.raises(ValueError, match=f"no topology '{name}': use a name such as"):
            mesh.find_devices(name)
    with pytest.raises(ValueError, match="no topology 'v5e_4x4': use a name such as"):
        mesh.find_devices("v5e_4x4")
    with pytest.raises(ValueError, match="unknown sharding strategy 'fdsp'; choose one of single"):
        mesh.find_strategy("fdsp")


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x2"])
def test_a_chip_is_one_device(name):
    assert len(mesh.find_devices(name)) == 4


@pytest.mark.tpu_compile
def test_topology_of_two_slices():
    devices = mesh.find_devices("2*v5e:2x2")
    made = mesh.make_mesh(STRATEGIES["multislice"], devices)
    assert dict(made.shape) == {"data": 2, "fsdp": 4}
    for row in made.devices:
        assert len({device.slice_index for device in row}) == 1  # fsdp stays inside a slice


def test_activation_rules_use_no_axis_twice():
    rules = STRATEGIES["fsdp_tp"].activation_rules
    assert rules["batch"] == ("data", "fsdp")
    assert rules["embed"] == ()
    assert rules["heads"] == ("tensor",)
    assert Strategy(mesh={"data": 1}, rules={}).activation_rules == {}
