# SPDX-License-Identifier: Apache-2.0
"""A decoder reads its rows where they are: all that devices tell each other are the sums of its losses."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from launch.build import build_run, make_model
from tests.decoders.grounding_dino.tiny import perception_batch, perception_config
from tests.sharding.test_compiled import abstract
from vllm2_jax import links
from vllm2_jax.batch import flatten_groups
from vllm2_jax.nn.axes import axis_rules, constrain
from vllm2_jax.sharding.collectives import collectives
from vllm2_jax.sharding.partition import batch_sharding
from vllm2_jax.sharding.program import parse


@pytest.mark.parametrize(
    "names", [("det",), pytest.param(("det", "grd", "seg"), marks=pytest.mark.slow)], ids=str
)
def test_grounding_adds_no_collective_to_routing(names):
    layers = {"model.decoders.grounding_dino.decoder_layers": 1}
    run = build_run(perception_config(**{"sharding.strategy": "dp"}, **layers))
    sharding = batch_sharding(run.mesh, run.strategy.rules)
    model = jax.eval_shape(lambda: make_model(run.model, 0)).decoders["grounding_dino"]
    graph, params = nnx.split(model)
    tasks = abstract({name: perception_batch()[name] for name in names}, sharding)
    hidden = {
        task: jax.ShapeDtypeStruct((8, 1, 160, run.model.llm.width), jnp.float32, sharding=sharding)
        for task in tasks
    }

    def program(params, hidden, tasks):
        decoder = nnx.merge(graph, params)

        def sums(hidden):
            found = {}
            for task, rows in tasks.items():
                states = jax.tree.map(flatten_groups, links.read(hidden[task], rows))
                targets = jax.tree.map(
                    lambda x: constrain(flatten_groups(x), "batch", *[None] * (x.ndim - 2)),
                    rows.targets["grounding_dino"],
                )
                terms = decoder.loss(states, targets, key=jax.random.key(0))
                found |= {f"{task}/{name}": value for name, value in terms.items()}
            return jnp.stack([value for value, _ in found.values()])

        values, pull = jax.vjp(sums, hidden)
        return values, pull(jnp.ones_like(values))

    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        text = jax.jit(program).lower(params, hidden, tasks).compile().as_text()
    found = collectives(parse(text), dict(run.mesh.shape))
    assert {one.kind for one in found} <= {"all-reduce"}, found
