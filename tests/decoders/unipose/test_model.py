# SPDX-License-Identifier: Apache-2.0
"""The pose decoder as a whole: what must not matter does not, and what is missing does no harm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoders.unipose.tiny import CONFIG, LINK_WIDTH, QUERIES_A_LINK, batch, build
from vllm2_jax.batch import Links, mean
from vllm2_jax.decoders import DECODERS
from vllm2_jax.decoders.decoder import Decoder
from vllm2_jax.decoders.unipose.targets import Capacity

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def predict():
    return jax.jit(lambda model, links, targets: model.predict(links, targets))


@pytest.fixture(scope="module")
def losses(model):
    """Means of all terms, and the gradient of their sum with respect to the links."""

    def total(states, valid, targets, key):
        terms = model.loss(Links(states, valid), targets, key=key)
        means = {name: mean(value) for name, value in terms.items()}
        return sum(means.values()), means

    run = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run_on(links, targets, key=KEY):
        (_, means), gradient = run(links.states, links.valid, targets, key)
        return means, np.asarray(gradient)

    return run_on


def test_it_is_a_decoder(model):
    assert DECODERS["unipose"] is type(model)
    assert isinstance(model, Decoder)


def assert_same(found, want, row, keypoints):
    """The same answer for a row, as far as there is one."""
    count = int((want.scores[row] > 0).sum())
    assert count
    np.testing.assert_allclose(found.scores[row, :count], want.scores[row, :count], atol=2e-5)
    np.testing.assert_array_equal(found.labels[row, :count], want.labels[row, :count])
    np.testing.assert_allclose(found.boxes[row, :count], want.boxes[row, :count], atol=2e-5)
    mine, others = (x.keypoints[row, :count, :keypoints] for x in (found, want))
    np.testing.assert_allclose(mine, others, atol=2e-5)


def test_rows_do_not_depend_on_each_other(model, predict):
    """Mixed sets of classes and keypoints in one batch; a row says what it says beside an empty one."""
    together = predict(model, *batch())
    first = predict(model, *batch(classes=(2, 0), keypoints=(3, 0), objects=(2, 0)))
    second = predict(model, *batch(classes=(0, 1), keypoints=(0, 2), objects=(0, 1)))
    assert_same(first, together, 0, keypoints=3)
    assert_same(second, together, 1, keypoints=2)
    for alone, empty in ((first, 1), (second, 0)):
        assert all(np.isfinite(x).all() for x in vars(alone).values()) and not alone.scores[empty].any()
    for row, classes in enumerate((2, 1)):
        assert set(np.asarray(together.labels[row])[together.scores[row] > 0]) <= set(range(classes))


def test_free_places_do_not_matter(model, predict, losses):
    """Neither how many there are nor what is in them."""
    few, many = predict(model, *batch()), predict(model, *batch(rooms=(4, 5, 4)))
    assert_same(many, few, 0, keypoints=3)
    assert_same(many, few, 1, keypoints=2)
    (terms, gradient), (links, targets) = losses(*batch()), batch(garbage=-3)
    others, other_gradient = losses(links, targets)
    assert terms == others and len(terms) == 3 + 3 + 2 * 5 + 3 * 3
    np.testing.assert_array_equal(other_gradient, gradient)
    # Every link learns, and no free place.
    np.testing.assert_array_equal(np.abs(gradient).max(axis=(2, 3)) > 0, links.valid)


def test_no_keypoint_is_visible(losses):
    links, targets = batch()
    targets["visibility"] = jnp.zeros_like(targets["visibility"])
    terms, gradient = losses(links, targets)
    assert np.isfinite(gradient).all()
    for name in ("keypoints", "keypoints_1"):
        assert terms[name] == 0
    for name in ("oks", "oks_1"):  # official: 1 - 1e-6 for each object
        np.testing.assert_allclose(terms[name], CONFIG.criterion.keypoint_weight, rtol=1e-4)
    assert terms["box"] > 0


@pytest.mark.parametrize("objects", [(0, 0), (0, 1)])
def test_rows_without_objects(losses, objects):
    """A batch without any object weighs nothing; beside another row, an empty one still learns background."""
    terms, gradient = losses(*batch(objects=objects))
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(value) for value in terms.values())
    assert all((value > 0) == any(objects) for value in terms.values())
    np.testing.assert_array_equal(np.abs(gradient).max(axis=(1, 2, 3)) > 0, [any(objects)] * 2)


def test_rows_without_links_learn_nothing(losses):
    terms, gradient = losses(*batch(classes=(2, 0), keypoints=(3, 0), objects=(2, 0)))
    assert np.isfinite(list(terms.values())).all() and np.isfinite(gradient).all()
    assert gradient[0].any() and not gradient[1].any()


def test_dropping_and_denoising_are_random(losses):
    """Equal keys give equal losses, other keys give others."""
    first, again, *others = (losses(*batch(), key)[0] for key in [KEY, KEY, *jax.random.split(KEY, 4)])
    assert first == again
    assert all(first["box_dn"] != other["box_dn"] for other in others)
    assert any(first["box"] != other["box"] for other in others)


def test_faithful_repeats_the_official_errors(model, predict):
    """With the same weights, the masks among classes and among keypoints change the answer."""
    official = build(dataclasses.replace(CONFIG, faithful=True))
    right, found = predict(model, *batch()), predict(official, *batch())
    assert np.abs(right.scores - found.scores).max() > 1e-3
    assert np.abs(right.keypoints[0] - found.keypoints[0]).max() > 1e-3


def test_abstract_targets_run(model):
    capacity = Capacity(size=64, objects=3, keypoints=2)
    links = (
        jax.ShapeDtypeStruct((4, 5, QUERIES_A_LINK, LINK_WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((4, 5), jnp.bool_),
    )
    targets = type(model).example(4, capacity)
    terms = jax.eval_shape(lambda links, t: model.loss(Links(*links), t, key=KEY), links, targets)
    assert all(value.shape == weight.shape == () for value, weight in terms.values())
    found = jax.eval_shape(lambda links, t: vars(model.predict(Links(*links), t)), links, targets)
    assert found["keypoints"].shape == (4, 3 * CONFIG.instances, 2, 2)


def test_errors_say_what_to_do(model):
    def loss(links, targets):  # traced alone: all of them are said before anything runs
        jax.eval_shape(lambda: model.loss(links, targets, key=KEY))

    def predict(links, targets):
        jax.eval_shape(lambda: vars(model.predict(links, targets)))

    links, targets = batch(rooms=(2, 3, 5))
    with pytest.raises(ValueError, match="capacity of boxes"):
        loss(links, targets)
    links, targets = batch()
    with pytest.raises(ValueError, match="lack visibility"):
        loss(links, {k: v for k, v in targets.items() if k != "visibility"})
    with pytest.raises(ValueError, match="a class and a keypoint"):
        predict(links, targets | {"keypoint_ids": jnp.zeros((2, 5), jnp.int32)})
    wide = Links(jnp.zeros((2, 80, 2, LINK_WIDTH)), jnp.zeros((2, 80), bool))
    with pytest.raises(ValueError, match="68 at most"):
        predict(wide, targets | {"keypoint_ids": jnp.zeros((2, 70), jnp.int32)})
    with pytest.raises(ValueError, match="instances"):
        dataclasses.replace(CONFIG, instances=99)
    with pytest.raises(ValueError, match="multiple of the 32"):
        dataclasses.replace(CONFIG, width=48)
