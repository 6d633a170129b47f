# SPDX-License-Identifier: Apache-2.0
"""The key of a step reaches all that is random in the model, and every decoder as its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from launch.abstract import abstract_batch
from launch.build import build_run
from tests.decoders.grounding_dino.tiny import perception_config
from tests.distributed.tiny import tiny_config
from tests.train.small import rows
from vllm2_jax.model import VisionLLMv2

SMALL = {"sharding.strategy": "single", "data.groups": 1}


def random_terms(config, tasks=None) -> set[str]:
    """Loss terms that depend on the key, as the program is written; nothing is compiled."""
    run = build_run(config)
    batch = abstract_batch(config, run)

    def losses(key, state, batch):
        terms, _ = nnx.merge(run.plan.graphdef, state.params, state.frozen).losses(batch, key=key)
        return {name: value for name, (value, _) in terms.items()}

    arguments = jax.random.key(0), run.plan.abstract, {task: batch[task] for task in tasks or batch}
    program, terms = jax.make_jaxpr(losses, return_shape=True)(*arguments)

    def reads_key(name):
        _, used = dce_jaxpr(program.jaxpr, [other == name for other in sorted(terms)])
        return used[0]

    return {name for name in terms if reads_key(name)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [({}, set()), ({"model.llm.lora.rank": 2}, {"lm"}), ({"model.regions.samples": 9}, {"lm"})],
    ids=str,
)
def test_the_key_reaches_adapters_and_sampled_regions(overrides, expected):
    assert random_terms(tiny_config(**SMALL, **overrides)) == expected


ALL = {"class", "box", "giou", "mask", "dice"}


@pytest.mark.parametrize(
    ("denoising", "dropout", "expected"), [(0, 0.0, {"mask", "dice"}), (2, 0.0, ALL), (0, 0.1, ALL)]
)
def test_the_key_reaches_points_of_masks_and_denoising_and_drops(denoising, dropout, expected):
    sizes = {"decoder_layers": 1, "drop_path": 0.0, "backbone.drop_path": 0.0}
    sizes |= {"criterion.denoising": denoising, "dropout": dropout}
    decoder = {f"model.decoders.grounding_dino.{name}": value for name, value in sizes.items()}
    found = random_terms(perception_config(**SMALL, **decoder), ["det"])
    assert {name.removeprefix("grounding_dino/").partition("_")[0] for name in found} == expected


class Drawing(nnx.Module):
    """A decoder whose loss is what it draws."""

    def loss(self, links, targets, *, key):
        return {"drawn": (jax.random.uniform(key), jnp.ones(()))}


def test_every_decoder_draws_its_own_numbers():
    run = build_run(tiny_config(**SMALL))
    model = nnx.merge(run.plan.graphdef, run.plan.abstract.params, run.plan.abstract.frozen)
    model.decoders = nnx.Dict({"one": Drawing(), "two": Drawing()})
    task = rows(np.random.default_rng(0), 1, 2, box=False)
    task = dataclasses.replace(
        task,
        link_position=jnp.zeros((1, 2, 1, 4), int),
        link_valid=jnp.ones((1, 2, 1), bool),
        targets={decoder: {} for decoder in model.decoders},
    )
    hidden = {"task": jnp.zeros((1, 2, 6, 8))}

    def drawn(decoder, key):
        found = VisionLLMv2.decoder_losses(model, decoder, hidden, {"task": task}, key=key)
        return float(found[f"{decoder}/drawn"][0])

    first, second, nothing = jax.random.key(1), jax.random.key(2), None
    values = [drawn(decoder, key) for decoder in ("one", "two") for key in (first, second, nothing)]
    assert len(set(values)) == 6
    assert values[:3] == [drawn("one", key) for key in (first, second, nothing)]
