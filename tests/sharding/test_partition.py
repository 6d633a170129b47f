# SPDX-License-Identifier: Apache-2.0
"""From axis names to shardings: alignment, fallbacks, and every way it can be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from vllm2_jax.nn.layers import param
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.sharding import partition
from vllm2_jax.sharding.mesh import abstract_mesh, make_mesh
from vllm2_jax.sharding.strategies import STRATEGIES

FSDP_TP = STRATEGIES["fsdp_tp"]


def make(shape, axes):
    return param(nnx.initializers.ones, Rngs(0), shape, axes)


def place(shape, axes, rules=FSDP_TP.rules, devices=8):
    return partition.place("a/b", make(shape, axes), abstract_mesh(FSDP_TP, devices), rules)


def test_names_are_read_from_the_right():
    assert place((3, 8, 6), ("embed", "mlp")).spec == P(None, "fsdp", "tensor")
    assert place((3, 8, 6), ("embed", "mlp")).axes == ("layers", "embed", "mlp")
    assert place((8,), (None,)).spec == P(None)


def test_axis_that_does_not_divide_is_reported():
    placed = place((8, 3), ("embed", "heads"))
    assert placed.spec == P("fsdp", None)
    assert placed.fallbacks == ("heads: 3 over tensor=2",)


@pytest.mark.parametrize(
    "axes, rules, message",
    [
        (("embed", "mpl"), FSDP_TP.rules, "a/b: unknown axis name 'mpl'"),
        (("embed", "mlp"), {"embed": "fsdp", "mlp": "fsdp"}, "mesh axis fsdp would split two axes"),
        (("embed", "mlp"), {"embed": "rows"}, "'embed' names the mesh axis 'rows', the mesh has data"),
        (("embed", "mlp", "heads"), FSDP_TP.rules, "3 axis names"),
    ],
)
def test_what_raises(axes, rules, message):
    with pytest.raises(ValueError, match=message):
        place((8, 6), axes, rules)


def test_parameter_without_names_and_unknown_rule_raise():
    bare = nnx.Param(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="w has no axis names"):
        partition.placements({"w": bare}, abstract_mesh(FSDP_TP, 8), FSDP_TP.rules)
    with pytest.raises(ValueError, match="unknown axis name 'emebd'"):
        partition.placements({}, abstract_mesh(FSDP_TP, 8), {"emebd": "fsdp"})


def test_optimizer_state_follows_the_parameters():
    mesh = make_mesh(FSDP_TP)
    params = {"w": make((8, 6), ("embed", "mlp"))}
    state = jax.eval_shape(optax.adam(1.0).init, params)
    found = partition.shardings(state, mesh, FSDP_TP.rules)
    assert found[0].mu["w"].get_raw_value().spec == P("fsdp", "tensor")
    assert found[0].count.spec == P()
    zero1 = STRATEGIES["zero1"]
    found = partition.shardings(state, make_mesh(zero1), zero1.optimizer_rules)
    assert found[0].nu["w"].get_raw_value().spec == P("data", None)


def test_every_process_gets_its_part_of_a_batch():
    mesh = make_mesh(FSDP_TP)
    assert partition.host_share(mesh, FSDP_TP.rules) == (0, 1)
    batch = partition.global_batch(mesh, FSDP_TP.rules, {"x": np.arange(8.0)})
    assert batch["x"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(batch["x"], np.arange(8.0))
    np.testing.assert_array_equal(partition.local_rows(batch["x"]), np.arange(8.0))
    with pytest.raises(ValueError, match="6 groups do not split over 4 batch shards"):
        partition.global_batch(mesh, FSDP_TP.rules, {"x": np.arange(6.0)})
