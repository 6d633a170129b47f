# SPDX-License-Identifier: Apache-2.0
"""Losses against a loop over pictures and objects; and that capacity, duplicates and emptiness do no harm."""

from operator import itemgetter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.ops.test_masks import looked_up
from vllm2_jax.batch import mean
from vllm2_jax.decoders.denoising import lay_out
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig
from vllm2_jax.decoders.grounding_dino.costs import costs
from vllm2_jax.decoders.grounding_dino.criterion import Criterion, denoising_pairs, draw
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT, Outputs, Predictions
from vllm2_jax.decoders.grounding_dino.targets import read_truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, paired_giou

CONFIG = CriterionConfig(points=24, denoising=4)
LAYERS, QUERIES, CLASSES, WIDTH, SIDE = 2, 9, 4, 6, 8
COUNTS = (2, 0, 3)


def make_truth(counts=COUNTS, places=3, seed=0, masked=True):
    """Objects, and garbage in the free places."""
    rng = np.random.default_rng(seed)
    rows = len(counts)
    centre, size = rng.uniform(0.3, 0.7, (rows, places, 2)), rng.uniform(0.1, 0.4, (rows, places, 2))
    return read_truth(
        {
            "boxes": np.concatenate([centre, size], -1).astype(np.float32),
            "labels": rng.integers(0, 3, (rows, places)).astype(np.int32),
            "valid": np.arange(places) < np.array(counts)[:, None],
            "masks": (rng.random((rows, places, 16, 16)) < 0.5).astype(np.uint8),
            "mask_valid": np.full((rows, places), masked),
        }
    )


def widen(truth, places):
    """More places, filled with the first object again, but not valid."""

    def more(x):
        return jnp.concatenate([x, jnp.repeat(x[:, :1], places - x.shape[1], axis=1)], axis=1)

    wide = jax.tree.map(more, truth)
    valid = jnp.arange(places) < truth.counts[:, None]
    return wide.replace(valid=valid, mask_valid=wide.mask_valid & valid)


def predictions(rng, *lead, queries=QUERIES):
    classes = np.full((*lead, queries, CLASSES), ABSENT, np.float32)
    classes[..., :3] = rng.normal(0, 2, (*lead, queries, 3))
    return Predictions(
        jnp.asarray(classes),
        jnp.asarray(rng.uniform(0.1, 0.6, (*lead, queries, 4)).astype(np.float32)),
        jnp.asarray(rng.normal(size=(*lead, queries, WIDTH)).astype(np.float32)),
    )


def make_outputs(rows=3, slots=8, seed=1):
    rng = np.random.default_rng(seed)
    return Outputs(
        layers=predictions(rng, LAYERS, rows),
        denoising=predictions(rng, LAYERS, rows, queries=slots),
        encoder=predictions(rng, rows),
        mask_features=jnp.asarray(rng.normal(size=(rows, SIDE, SIDE, WIDTH)).astype(np.float32)),
        classes=jnp.ones((rows, CLASSES), bool).at[:, 3].set(False),
    )


def layout_of(truth):
    return lay_out(truth.counts, truth.counts, CONFIG.denoising, truth.valid.shape[1])


@jax.jit
def losses(outputs, truth, points):
    return Criterion(CONFIG, truth)(outputs, points, layout_of(truth))


def arrays(tree):
    """The fields of a structure in NumPy."""
    return SimpleNamespace(**{name: np.asarray(value) for name, value in vars(tree).items()})


def looped(outputs, truth, points):
    """Every term of the matched sets by loops, in NumPy."""
    out = {}
    truth = arrays(truth)
    for number, suffix in enumerate(("_enc", "_0", "")):
        found = arrays(
            outputs.encoder if number == 0 else jax.tree.map(itemgetter(number - 1), outputs.layers)
        )
        terms = dict.fromkeys(("class", "box", "giou", "mask", "dice"), 0.0)
        for b, count in enumerate(truth.valid.sum(1)):
            cost = _costs(found, truth, b, count)
            query, target = linear_sum_assignment(cost)
            wanted = np.zeros((QUERIES, 3))
            wanted[query, truth.labels[b, target]] = 1
            p = 1 / (1 + np.exp(-found.logits[b, :, :3].astype(np.float64)))
            right = np.where(wanted == 1, p, 1 - p)
            terms["class"] += (np.where(wanted == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)).sum()
            for q, t in zip(query, target, strict=True):
                terms["box"] += np.abs(found.boxes[b, q] - truth.boxes[b, t]).sum()
                terms["giou"] += 1 - _giou(found.boxes[b, q], truth.boxes[b, t])
                logits = np.asarray(outputs.mask_features[b] @ found.masks[b, q])
                candidates = points.matched.candidates[0, b, 0]
                x, y = _read(logits, truth.masks[b, t], candidates, points.matched.random[0, b, 0])
                s = 1 / (1 + np.exp(-x))
                terms["mask"] += -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean()
                terms["dice"] += 1 - (2 * (s * y).sum() + 1) / (s.sum() + y.sum() + 1)
        coefficient = {"class": 2, "box": 5, "giou": 2, "mask": 5, "dice": 5}
        out |= {f"{name}{suffix}": coefficient[name] * value for name, value in terms.items()}
    return out


def _costs(found, truth, b, count):
    p = 1 / (1 + np.exp(-found.logits[b, :, :3].astype(np.float64)))
    gain = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
    cost = np.zeros((QUERIES, count))
    for q, t in np.ndindex(cost.shape):
        cost[q, t] = 2 * gain[q, truth.labels[b, t]]
        cost[q, t] += 5 * np.abs(found.boxes[b, q] - truth.boxes[b, t]).sum()
        cost[q, t] -= 2 * _giou(found.boxes[b, q], truth.boxes[b, t])
    return cost


def _giou(a, b):
    return float(paired_giou(cxcywh_to_xyxy(jnp.asarray(a)), cxcywh_to_xyxy(jnp.asarray(b))))


def _read(logits, truth, candidates, random):
    values = np.array([looked_up(logits, point) for point in candidates])
    chosen = np.asarray(candidates)[np.argsort(np.abs(values))[: CONFIG.points * 3 // 4]]
    places = np.concatenate([chosen, random])
    return (np.array([looked_up(image, point) for point in places]) for image in (logits, truth))


def test_matched_terms_are_those_of_a_loop():
    outputs, truth = make_outputs(), make_truth()
    points = draw(jax.random.key(0), 3, CONFIG)
    got = losses(outputs, truth, points)
    for name, want in looped(outputs, truth, points).items():
        assert float(got[name][0]) == pytest.approx(want, rel=1e-4), name
        assert got[name][1] == 5


def test_capacity_changes_nothing():
    outputs, truth = make_outputs(), make_truth()
    points = draw(jax.random.key(0), 3, CONFIG)
    want = losses(outputs, truth, points)
    # Two free places in every row; the number of denoising slots stays, for it depends on the config here.
    got = losses(outputs, widen(truth, 4), points)
    assert want.keys() == got.keys()
    for name, (value, weight) in want.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-5, err_msg=name)
        assert got[name][1] == weight


def test_rows_without_objects_add_background_only():
    outputs, truth = make_outputs(), make_truth()
    points = draw(jax.random.key(0), 3, CONFIG)

    def without_second(x, axis):
        return jnp.delete(x, 1, axis=axis, assume_unique_indices=True)

    fewer = Outputs(
        layers=jax.tree.map(lambda x: without_second(x, 1), outputs.layers),
        denoising=jax.tree.map(lambda x: without_second(x, 1), outputs.denoising),
        encoder=jax.tree.map(lambda x: without_second(x, 0), outputs.encoder),
        mask_features=without_second(outputs.mask_features, 0),
        classes=without_second(outputs.classes, 0),
    )
    all_rows = losses(outputs, truth, points)
    some = losses(
        fewer,
        jax.tree.map(lambda x: without_second(x, 0), truth),
        jax.tree.map(lambda x: without_second(x, 1), points),
    )
    for name, (value, _) in some.items():
        if name.startswith("class") and "dn" not in name:
            assert all_rows[name][0] > value
        else:
            np.testing.assert_allclose(all_rows[name][0], value, rtol=1e-5, err_msg=name)


def test_batch_without_objects_gives_zero_and_no_gradient():
    outputs, truth = make_outputs(), make_truth(counts=(0, 0, 0))
    points = draw(jax.random.key(0), 3, CONFIG)

    def total(layers, noise, encoder, features):
        changed = outputs.replace(layers=layers, denoising=noise, encoder=encoder, mask_features=features)
        return sum(mean(value) for value in losses(changed, truth, points).values())

    value, gradient = jax.value_and_grad(total, argnums=(0, 1, 2, 3))(
        outputs.layers, outputs.denoising, outputs.encoder, outputs.mask_features
    )
    assert value == 0
    for leaf in jax.tree.leaves(gradient):
        assert not np.asarray(leaf).any()
    for name, (value, weight) in losses(outputs, truth, points).items():
        assert np.isfinite(value), name
        assert weight == 0


def test_objects_without_masks_leave_the_mask_terms_to_others():
    outputs, truth = make_outputs(), make_truth()
    points = draw(jax.random.key(0), 3, CONFIG)
    some = truth.replace(mask_valid=truth.mask_valid & (jnp.arange(3) == 0))
    whole, part = losses(outputs, truth, points), losses(outputs, some, points)
    for name in whole:
        if name.startswith(("mask", "dice")):
            assert 0 < part[name][0] < whole[name][0] and part[name][1] == 2
        else:
            np.testing.assert_array_equal(part[name], whole[name])
    nothing = losses(outputs, make_truth(masked=False), points)
    assert mean(nothing["mask"]) == mean(nothing["dice_dn"]) == 0


def test_the_same_object_twice_takes_two_queries():
    outputs, truth = make_outputs(rows=1), make_truth(counts=(2,), places=2)
    twin = jax.tree.map(lambda x: jnp.repeat(x[:, :1], 2, axis=1), truth)
    cost = costs(outputs.encoder.logits, outputs.encoder.boxes, twin, CONFIG)
    np.testing.assert_array_equal(cost[..., 0], cost[..., 1])
    points = draw(jax.random.key(0), 1, CONFIG)
    two = losses(outputs, twin, points)
    best = np.sort(np.abs(np.asarray(outputs.encoder.boxes[0] - twin.boxes[0, 0])).sum(-1))
    assert two["box_enc"][1] == 2
    assert two["box_enc"][0] >= 5 * (best[0] + best[1]) - 1e-5  # not twice the best one
    assert np.isfinite(two["giou"][0])


def test_a_denoising_group_of_a_row_weighs_what_the_row_has():
    """Rows with one object have more groups, but no more weight."""
    truth = make_truth(counts=(1, 3, 2))
    pairs = denoising_pairs(layout_of(truth), truth)
    np.testing.assert_allclose(pairs.weight.sum(1), [1, 3, 2])
    layout = layout_of(truth)
    for b, count in enumerate((1, 3, 2)):
        real = np.asarray(pairs.weight[b]) > 0
        assert real.sum() == count * int(layout.groups[b])
        slots = np.asarray(pairs.query[b])[real]
        assert np.asarray(layout.matched)[b, slots].all() and len(set(slots)) == len(slots)
        target = np.asarray(layout.target)[b, slots]
        np.testing.assert_array_equal(np.asarray(pairs.truth.boxes)[b, real], truth.boxes[b, target])


def test_denoising_terms_are_those_of_a_loop():
    outputs, truth = make_outputs(), make_truth()
    points = draw(jax.random.key(0), 3, CONFIG)
    got, layout = losses(outputs, truth, points), layout_of(truth)
    for i, suffix in enumerate(("_dn_0", "_dn")):
        box = background = mask = dice = 0.0
        for b, d in np.argwhere(np.asarray(layout.live)):
            share, target = 1 / float(layout.groups[b]), int(layout.target[b, d])
            label = int(truth.labels[b, target]) if layout.matched[b, d] else -1
            if label >= 0:
                box += share * np.abs(outputs.denoising.boxes[i, b, d] - truth.boxes[b, target]).sum()
                logits = np.asarray(outputs.mask_features[b] @ outputs.denoising.masks[i, b, d])
                candidates = points.denoising.candidates[0, b, 0]
                x, y = _read(logits, truth.masks[b, target], candidates, points.denoising.random[0, b, 0])
                s = 1 / (1 + np.exp(-x))
                mask += share * -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean()
                dice += share * (1 - (2 * (s * y).sum() + 1) / (s.sum() + y.sum() + 1))
            for k in range(3):
                p = 1 / (1 + np.exp(-float(outputs.denoising.logits[i, b, d, k])))
                right, alpha = (p, 0.25) if k == label else (1 - p, 0.75)
                background += share * alpha * (1 - right) ** 2 * -np.log(right)
        for term, value in (("box", box), ("mask", mask), ("dice", dice)):
            assert float(got[f"{term}{suffix}"][0]) == pytest.approx(5 * value, rel=1e-4), term
        assert float(got[f"class{suffix}"][0]) == pytest.approx(2 * background, rel=1e-4)


def test_points_are_drawn_for_each_row_and_kind_of_query():
    one, same, other = (draw(jax.random.key(i), 2, CONFIG) for i in (0, 0, 1))
    for a, b, c in zip(*map(jax.tree.leaves, (one, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all() and (a[0, 0] != a[0, 1]).all()
        assert 0 <= a.min() < 0.2 < 0.8 < a.max() < 1
    matched, noisy = one.matched, one.denoising
    assert matched.candidates.shape == (1, 2, 1, 72, 2) and matched.random.shape == (1, 2, 1, 6, 2)
    assert (matched.candidates != noisy.candidates).all() and (matched.random != noisy.random).all()
    assert (matched.candidates[..., :6, :] != matched.random).all()


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"lack masks, mask_valid; they have boxes, labels, valid"):
        read_truth({"boxes": 0, "labels": 0, "valid": 0})
