# SPDX-License-Identifier: Apache-2.0
"""A decoder's losses train what calls it: its query bank, the language model, the tokens before the link."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.build import build_run, make_model
from tests.decoders.grounding_dino.tiny import perception_batch, perception_config
from tests.weights import randomized
from vllm2_jax import links
from vllm2_jax.batch import TaskRows, flatten_groups, mean
from vllm2_jax.decoders import DECODERS
from vllm2_jax.nn.paths import flatten_paths

TASKS = {"det": "det", "grd": "grd", "seg": "seg"}  # task -> the special token that calls the decoder


@pytest.fixture(scope="module")
def run():
    return build_run(
        perception_config(
            **{"sharding.strategy": "single", "model.decoders.grounding_dino.decoder_layers": 1}
        )
    )


def model(run):
    return randomized(lambda: make_model(run.model, 0), std=0.1)


@pytest.fixture(scope="module")
def trained(run):
    """All loss terms, and the gradient of the decoder's alone by path: all tasks call it at once."""
    graph, params = nnx.split(model(run))
    batch = jax.tree.map(lambda x: jnp.asarray(x[:2]), perception_batch())

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def of(params):
        terms, _ = nnx.merge(graph, params).losses(batch, key=jax.random.key(0))
        return sum(mean(value) for name, value in terms.items() if name.startswith("grounding_dino/")), terms

    gradient, terms = of(params)
    return terms, {path: np.asarray(leaf) for path, leaf in flatten_paths(gradient)[0].items()}


def size(x):
    return float(np.abs(x).max())


def test_reaches_the_banks_and_the_language_model(trained):
    _, found = trained
    assert all(np.isfinite(x).all() for x in found.values())
    # Detection, referring and segmentation share a bank (`vllm2_jax.tokens.LINKS`).
    assert (np.abs(found["queries/det"]).max(-1) > 1e-7).all()  # every query of the link
    for bank in ("pose", "gen", "edit"):
        assert size(found[f"queries/{bank}"]) == 0
    llm = [path for path in found if path.startswith("llm/layers/")]
    # The states are read after the last norm, so every layer counts.
    assert llm and all(
        (np.abs(found[path]).reshape(len(found[path]), -1).max(-1) > 1e-9).all() for path in llm
    )
    assert size(found["llm/head"]) == 0  # no word is predicted here


def test_reaches_what_stands_before_the_link(run, trained):
    ids, rows = run.tokenizer.ids, trained[1]["llm/embed"]
    for token in TASKS.values():
        assert size(rows[getattr(ids, token)]) > 1e-7  # the routing token
    assert size(rows[ids.emb]) == 0  # query columns come from the bank, not from the token
    assert size(trained[1]["bridge/layers/0/kernel"]) > 1e-9  # and the picture's tokens


def test_all_tasks_share_the_normaliser(trained):
    """Their rows have different room for links and objects, and are weighed together."""
    terms, batch = trained[0], jax.tree.map(lambda x: x[:2], perception_batch())
    objects = sum(int(batch[task].targets["grounding_dino"]["valid"].sum()) for task in TASKS)
    assert float(terms["grounding_dino/box"][1]) == objects
    assert all(np.isfinite(float(mean(value))) for value in terms.values())


class Probe:
    """A decoder that keeps what its loss was given."""

    def __init__(self, config, *, link_width, rngs):
        del config, link_width, rngs

    def loss(self, links, targets, *, key):
        self.given = links, targets["x"], jax.random.key_data(key).tolist()
        return {"nothing": (jnp.zeros(()), jnp.ones(()))}


def test_rows_of_tasks_with_different_room_are_joined_group_by_group(run, monkeypatch):
    """A device keeps its groups; every link of every row brings its own states, and its own targets."""
    monkeypatch.setitem(DECODERS, "probe", Probe)
    monkeypatch.setitem(DECODERS, "prober", Probe)
    config = dataclasses.replace(run.model, decoders={"probe": None, "prober": None})
    asked = jax.eval_shape(lambda: make_model(config, 0))
    rng = np.random.default_rng(0)
    groups, queries, width = 2, 3, 4
    batch, hidden = {}, {}
    for name, rows, room, length in (("tall", 2, 2, 9), ("wide", 1, 3, 7)):
        x = {"x": rng.normal(size=(groups, rows, room)).astype(np.float32)}
        batch[name] = TaskRows(
            perception_batch()["det"].inputs,
            np.zeros((groups, rows, length), int),
            rng.integers(0, length, (groups, rows, room, queries)),
            rng.random((groups, rows, room)) < 0.7,
            {"probe": x, "prober": x},
        )
        hidden[name] = jnp.asarray(rng.normal(size=(groups, rows, length, width)), jnp.float32)
    batch = jax.tree.map(jnp.asarray, batch)
    batch["talk"] = batch["tall"].replace(targets={})  # has no states, and needs none
    assert set(asked.decoder_losses("probe", hidden, batch)) == {"probe/nothing"}
    found, targets, _ = asked.decoders["probe"].given
    order = [(g, name, r) for g in range(groups) for name in hidden for r in range(hidden[name].shape[1])]
    assert len(order) == len(found.states)
    for row, (g, name, r) in enumerate(order):
        mine = batch[name]
        room = mine.link_valid.shape[2]
        want = np.asarray(hidden[name])[g, r][mine.link_position[g, r]]
        np.testing.assert_array_equal(found.states[row, :room], want)
        np.testing.assert_array_equal(found.valid[row, :room], mine.link_valid[g, r])
        np.testing.assert_array_equal(targets[row, :room], mine.targets["probe"]["x"][g, r])
        assert not found.valid[row, room:].any() and not targets[row, room:].any()

    def key(decoder, seed, tasks=batch):
        asked.decoder_losses(decoder, hidden, tasks, key=jax.random.key(seed))
        return asked.decoders[decoder].given[-1]

    assert key("probe", 1) == key("probe", 1, {"tall": batch["tall"]})  # whatever else is in the batch
    assert len({tuple(key(*x)) for x in (("probe", 1), ("probe", 2), ("prober", 1))}) == 3


def test_a_row_without_links_asks_for_nothing(run):
    """Its states are those of some other column and must not matter, to it or to its neighbours."""
    batch = jax.tree.map(lambda x: np.array(x[:2]), perception_batch())["det"]
    decoder = model(run).decoders["grounding_dino"]
    hidden = np.random.default_rng(0).normal(size=(2, 1, 160, run.model.llm.width)).astype(np.float32)
    batch.link_valid[1] = False
    batch.targets["grounding_dino"]["valid"][1] = False
    targets = {name: flatten_groups(jnp.asarray(x)) for name, x in batch.targets["grounding_dino"].items()}

    rows = jax.tree.map(jnp.asarray, batch)

    @jax.jit
    @jax.value_and_grad
    def loss(hidden):
        states = jax.tree.map(flatten_groups, links.read(hidden, rows))
        return sum(mean(x) for x in decoder.loss(states, targets, key=jax.random.key(0)).values())

    value, gradient = loss(jnp.asarray(hidden))
    assert np.isfinite(value) and value > 0
    assert size(gradient[0]) > 1e-6 and size(gradient[1]) == 0
    hidden[1] += 3
    np.testing.assert_allclose(loss(jnp.asarray(hidden))[0], value, rtol=1e-6)
