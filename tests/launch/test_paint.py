# SPDX-License-Identifier: Apache-2.0
"""Decoders that paint inside the whole model: a train step, evaluation and its report, answers' pictures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import stage3_paint_7b
from launch import build
from launch.answer import Answer
from launch.brush import Brush
from launch.heldout import Heldout, check_metrics
from launch.manner import manner_of
from launch.paint import PAINTED, Wish, paint
from launch.report import write_report
from tests.launch.small_painters import config
from tests.weights import randomized
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch
from vllm2_jax.train.optimizer import multipliers
from vllm2_jax.train.optimizer import trained as is_trained
from vllm2_jax.train.state import TrainState


@functools.cache
def run():
    return build.build_run(config())


@functools.cache
def trained():
    """The state after one step, its metrics, and the state before."""
    made, batch = run(), next(build.data_iterator(config(), run()))["batch"]
    # `create` compiles for a minute to draw what numpy draws at once.
    model = randomized(made.plan.make_model, std=0.1)
    _, params, frozen = nnx.split(model, is_trained(made.plan.groups), ...)
    before = TrainState(jnp.zeros((), jnp.int32), params, frozen, jax.jit(made.plan.tx.init)(params))
    kept = jax.device_get(before)
    before = jax.device_put(before, made.plan.shardings)
    with jax.set_mesh(made.mesh), axis_rules(made.strategy.activation_rules):
        step = jax.jit(made.train_step, out_shardings=(made.plan.shardings, None))
        after, metrics = step(before, global_batch(made.mesh, made.strategy.rules, batch))
    return after, jax.device_get(metrics), kept


def test_a_step_trains_what_the_table_says():
    after, metrics, before = trained()
    terms = {name for name in metrics if "/noise" in name or "/caption" in name}
    assert terms == {f"{d}/{t}" for d in config().model.decoders for t in ("noise", "caption")}
    assert all(metrics[name][1] == 2 for name in terms)  # two groups of one row
    moved = {
        path: bool(np.any(np.asarray(new) != old))
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(after.params), jax.tree.leaves(before.params), strict=True
        )
    }
    names = {jax.tree_util.keystr(path): value for path, value in moved.items()}
    for part in ("unet", "mapper"):
        assert any(value for name, value in names.items() if f"'{part}'" in name), part
    # The gradient runs through the decoders into the queries and the language model.
    for name in ("['queries']['gen']", "['queries']['edit']", "['llm']['norm']['scale']"):
        assert any(value for path, value in names.items() if path.startswith(name)), name


def test_heldout_pictures_are_scored_and_shown(tmp_path):
    heldout = Heldout(config(), run())
    model = build.rebuild(run(), trained()[0])
    results = heldout(model)
    assert set(results.scores) == {
        *(f"t2i/agreement/{key}" for key in ("shape", "colour", "both")),
        *(f"t2i/agreement/chance/{key}" for key in ("shape", "colour", "both")),
        *("edit/edits/error", "edit/edits/unchanged", "edit/edits/ratio"),
    }
    assert [one.number for one in results.painted["t2i"]] == [0, 1, 2]
    assert all(one.picture.shape == (16, 16, 3) for one in results.painted["edit"])
    again = heldout(model)
    np.testing.assert_array_equal(results.painted["t2i"][2].picture, again.painted["t2i"][2].picture)
    write_report(tmp_path / "report.html", results, {"trained": results.scores}, [])
    text = (tmp_path / "report.html").read_text()
    assert text.count("<figcaption class=small>painted</figcaption>") == 6
    assert text.count("<figcaption class=small>before</figcaption>") == 3


def test_metrics_have_to_fit_the_decoder():
    wrong = config()
    with wrong.unlocked():
        wrong.eval.tasks.t2i.metrics = ("box",)
    with pytest.raises(ValueError, match=r"t2i does not take the metrics .'box'.*agreement, edits"):
        check_metrics(wrong)


def answer(*links):
    states = np.random.default_rng(0).normal(size=(5, run().model.llm.width)).astype(np.float32)
    return Answer("done", True, links, "done", (states,) * len(links))


def test_links_of_an_answer_become_pictures():
    model = build.rebuild(run(), trained()[0])
    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    brush = Brush(run(), {"steps": 3}, seed=4)
    made = dict(brush(model, answer("gen", "det", "edit", "gen"), photo))
    assert list(made) == ["1_gen", "3_edit", "4_gen"]
    assert all(picture.shape == (16, 16, 3) and picture.dtype == np.uint8 for picture in made.values())
    assert np.any(made["1_gen"] != made["4_gen"])  # each link has its own noise
    with pytest.raises(ValueError, match="there is none: give one with --image"):
        list(brush(model, answer("edit"), None))
    with pytest.raises(ValueError, match="steps=0"):
        list(Brush(run(), {"steps": 0}, seed=0)(model, answer("gen"), None))


@pytest.mark.parametrize("task", ["gen", "edit"])
def test_one_wish_becomes_a_picture(task):
    model = build.rebuild(run(), trained()[0])
    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = photo if task == "edit" else None
    long = "a star and " * 30 + "a ring"  # longer than the run's own rows
    sizes, manner = {"size": 16, "caption": 20}, manner_of(config(), task, PAINTED[task])

    def go(prompt, seed=0):
        options = {"sampling": {"steps": 2}, "seed": seed}
        return paint(run(), model, Wish(task, prompt, before), sizes, manner, **options)

    made = go("a star")
    assert made.shape == (16, 16, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made, go("a star"))
    assert np.any(made != go("a star", seed=1))
    assert go(long).shape == made.shape
    with pytest.raises(ValueError, match="steps=0"):
        paint(run(), model, Wish(task, "x", before), sizes, manner, sampling={"steps": 0})
    # An untrained model writes no links.
    with pytest.raises(ValueError, match=f"calls no decoder for --task {task}"):
        paint(run(), model, Wish(task, "x", before), {}, manner, sampling={}, generated=True)


def test_the_given_answer_paints_as_evaluation_does():
    """The states of a link in a row of its own are those that the held-out pictures were made from."""
    heldout, model = Heldout(config(), run()), build.rebuild(run(), trained()[0])
    (commission,) = (one for one in heldout.commissions if one.name == "t2i")
    wanted = next(commission.maker(model, commission.examples))
    words = wanted.example.turns[0][1]
    asked = dataclasses.replace(Wish("gen", "x"), prompt=words.removeprefix("Paint this: "))
    if not words.startswith("Paint this: ") or not wanted.example.turns[1][1].startswith("Done: "):
        pytest.fail(f"the first record has another wording ({wanted.example.turns}): take another one")
    manner = manner_of(config(), "gen", "stable_diffusion")
    made = paint(run(), model, asked, {"size": 16, "caption": 20}, manner, sampling={}, seed=wanted.number)
    assert np.abs(made.astype(int) - wanted.picture.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "task, prompt, picture, message",
    [
        ("gen", " ", False, "say what with --prompt"),
        ("edit", "turn it", False, "give the --image to change"),
        ("gen", "a star", True, "leave out --image"),
    ],
)
def test_wishes_that_cannot_be_made(task, prompt, picture, message):
    with pytest.raises(ValueError, match=message):
        Wish(task, prompt, np.zeros((4, 4, 3), np.uint8) if picture else None)


def test_the_stage_of_the_paper_trains_mappers_and_the_unet_of_editing():
    groups = stage3_paint_7b.get_config().optimizer.groups
    model = jax.eval_shape(run().plan.make_model)
    table = multipliers(model, groups)
    found = {
        name: table[f"decoders/{name}"]
        for name in (
            "stable_diffusion/unet/conv_in/kernel",
            "instruct_pix2pix/unet/conv_in/kernel",
            "instruct_pix2pix/vae/quant/kernel",
            "stable_diffusion/text/tokens",
            "stable_diffusion/mapper/project/first/kernel",
            "stable_diffusion/mapper/queries",
            "instruct_pix2pix/mapper/decoder/cross/q/kernel",
        )
    }
    assert list(found.values()) == [None, 1.0, None, None, 1.0, 0.1, 0.1]
    assert (table["queries/gen"], table["llm/embed"], table["llm/norm/scale"]) == (1.0, 0.1, None)
