# SPDX-License-Identifier: Apache-2.0
"""Scores of objects that are neither perfect nor lost, against numbers and formulas written out here."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evals.pictures import SIZE, fill
from vllm2_jax.evals import OBJECTS, saliency
from vllm2_jax.evals.objects import Detections, GroundTruth, decode, encode, nothing

# Boxes with whole-numbered corners, and what their masks share: 380 of 400, 12 of 20, 50 of 150 pixels.
TRUE = np.array([[0, 0, 20, 20], [30, 5, 34, 10], [40, 40, 50, 50]], float)
FOUND = np.array([[0, 0, 20, 19], [30, 5, 34, 8], [40, 45, 50, 55]], float)
SHARED, EITHER = np.array([380, 12, 50]), np.array([400, 20, 150])


def there(boxes, labels=None, **more):
    """A picture with these boxes, filled."""
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return GroundTruth(SIZE, boxes, labels, encode(fill(boxes)), **more)


def seen(boxes, labels=None, scores=None):
    """Detections of these boxes, filled."""
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else np.array(scores)
    return Detections(boxes, labels, scores, encode(fill(boxes)))


def test_errors_of_counting():
    dogs = Detections(np.zeros((7, 4)), np.array(["dog"] * 6 + ["cat"]), np.array([0.9] * 5 + [0.5, 0.2]))
    crowd = np.array([False, False, False, True])
    animals = GroundTruth(SIZE, np.zeros((4, 4)), np.array(["dog", "dog", "cat", "dog"]), crowd=crowd)
    person = Detections(np.zeros((1, 4)), np.array(["person"]), np.array([0.51]))
    empty = GroundTruth(SIZE, np.zeros((0, 4)), np.zeros(0, str))
    # Five dogs of two, no cat of one, a person where nobody is; and, rightly, nothing.
    assert OBJECTS["count"]([dogs, person, nothing()], [animals, empty, empty]) == {
        "count/MAE": pytest.approx((3 + 1 + 1 + 0) / 4),
        "count/RMSE": pytest.approx(np.sqrt((9 + 1 + 1 + 0) / 4)),
        "count/exact": 0.25,
    }


def test_phrases_are_scored_by_picture_and_by_pixel():
    elsewhere = np.array([[60, 0, 80, 60]], float)
    found = [seen(np.concatenate([box[None], elsewhere])) for box in FOUND]
    scores = OBJECTS["refer"](found, [there(box[None]) for box in TRUE])
    expected = {"mIoU": (0.95 + 0.6 + 1 / 3) / 3, "cIoU": (380 + 12 + 50) / (400 + 20 + 150)}
    expected |= {f"P@{t}": (0.95 > t) / 3 + (0.6 > t) / 3 for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    for what in ("box", "mask"):
        assert {key: scores[f"refer/{what}/{key}"] for key in expected} == pytest.approx(expected)
    assert len(scores) == 2 * len(expected)


def test_phrases_that_refer_to_nothing():
    found, empty = seen(TRUE), there(TRUE[:0])
    right = OBJECTS["refer"]([nothing(masks=True)], [empty])
    assert right and all(value == 1.0 for value in right.values())
    # Of three alarms in an empty picture the best one counts, with its 400 pixels.
    one, other = OBJECTS["refer"].record(found, empty), OBJECTS["refer"].record(found, there(TRUE[:1]))
    assert one == {"box": (0.0, 400.0), "mask": (0.0, 400.0)}
    assert other == {"box": (400.0, 400.0), "mask": (400.0, 400.0)}
    half = OBJECTS["refer"].score([one, OBJECTS["refer"].record(nothing(masks=True), empty)])
    assert half["refer/mask/mIoU"] == half["refer/box/mIoU"] == half["refer/box/P@0.9"] == 0.5
    assert half["refer/mask/cIoU"] == half["refer/box/cIoU"] == 0.0


def test_prompts_are_scored_by_prompt_and_by_pixel():
    pictures = [there(TRUE[:2], [0, 1]), there(TRUE[2:])]
    scores = OBJECTS["interactive"]([seen(FOUND[:2], [0, 1]), seen(FOUND[2:])], pictures)
    assert scores == {
        "interactive/mIoU": pytest.approx((SHARED / EITHER).mean(), abs=1e-6),
        "interactive/cIoU": pytest.approx(SHARED.sum() / EITHER.sum()),
    }


def test_saliency_is_that_of_the_best_mask_with_all_that_is_there():
    found = [seen(FOUND[[0, 2]]), seen(FOUND[[2, 0]])]
    pictures = [there(TRUE[:2]), there(TRUE[2:])]
    best, true = fill(FOUND[[0, 2]]), [fill(TRUE[:2]).any(0), fill(TRUE[2:]).any(0)]
    scores = OBJECTS["saliency"](found, pictures)
    # Of 400 and 20 pixels 380 are found; of 100, 50 are found and 50 others besides.
    assert scores["saliency/MAE"] == pytest.approx((40 + 100) / 2 / (SIZE[0] * SIZE[1]))
    formulas = {"S": saliency.s_measure, "E": saliency.e_measure, "wF": saliency.weighted_f}
    for key, formula in formulas.items():
        each = [formula(a, b) for a, b in zip(best, true, strict=True)]
        assert scores[f"saliency/{key}"] == pytest.approx(np.mean(each)) and np.ptp(each) > 1e-3


# As COCO's site publishes them, in the order of its annotations: nose, eyes, ears; shoulders, elbows, wrists;
# hips, knees, ankles. CrowdPose has a head and a neck instead of a face.
FACE, TRUNK = [0.026, 0.025, 0.025, 0.035, 0.035], [0.107, 0.107, 0.087, 0.087, 0.089, 0.089]
ARMS = [0.079, 0.079, 0.072, 0.072, 0.062, 0.062]
SPREADS = {
    "keypoints": [*FACE, *ARMS, *TRUNK],
    "unikpt": [*FACE, *ARMS, *TRUNK, 0.025, 0.025],
    "crowdpose": [*ARMS, *TRUNK, 0.079, 0.079],
}


@pytest.mark.parametrize("name", SPREADS)
def test_keypoints_have_their_own_spread(name):
    """A point counts up to the threshold 0.75 at a similarity of 0.753, and not at 0.747."""
    for place, spread in enumerate(SPREADS[name]):
        true = np.zeros((1, len(SPREADS[name]), 3))
        true[0, place] = 30, 20, 2
        box = np.array([[10, 0, 50, 50]], float)
        picture = GroundTruth(SIZE, box, np.zeros(1, int), keypoints=true, area=np.array([1500.0]))
        area = 0.53 * 2000 if name == "crowdpose" else 1500  # CrowdPose annotates none
        precision = []
        for similarity in (0.753, 0.747):
            # exp(-d^2 / (2 area (2 spread)^2)), solved for the distance
            away = np.sqrt(-np.log(similarity) * 2 * area) * 2 * spread
            points = np.random.default_rng(0).uniform(0, 60, (1, len(SPREADS[name]), 2))
            points[0, place] = [30 + 0.6 * away, 20 - 0.8 * away]
            found = Detections(box, np.zeros(1, int), np.ones(1), keypoints=points)
            precision.append(OBJECTS[name]([found], [picture])[f"{name}/AP"])
        assert precision == pytest.approx([0.6, 0.5]), place  # of 0.5, 0.55 ... 0.95


def test_crowdedness_ends_below_its_bounds():
    box = np.array([[10, 0, 50, 50]], float)
    points = np.full((1, 14, 3), 30.0)
    points[..., 2] = 1
    scores = []
    for index in (0.1, 0.2, 0.79, 0.8, 0.89, 1.0):
        picture = GroundTruth(SIZE, box, np.zeros(1, int), keypoints=points, crowd_index=index)
        found = Detections(box, np.zeros(1, int), np.ones(1), keypoints=points[..., :2])
        scores += OBJECTS["crowdpose"]([found], [picture]).keys() - {"crowdpose/AP"}
    levels = [key.removeprefix("crowdpose/AP") for key in scores if key[-4:] in ("easy", "dium", "hard")]
    assert levels == ["easy", "medium", "medium", "hard", "hard", "hard"]


def test_pck_is_the_mean_over_keypoints_of_those_that_show_them():
    """The first point is seen in one picture, the second in three, the third never; found are two more."""
    box = np.array([[0, 0, 50, 30]], float)  # 0.2 of its longer side are 10 pixels
    pictures, found = [], []
    for seen, away in (([1, 2, 0], (9, 0, 0)), ([0, 1, 0], (90, 10.5, 0)), ([0, 2, 0], (0, 9, 90))):
        true = np.array([[[5, 5, seen[0]], [20, 20, seen[1]], [7, 7, seen[2]]]], float)
        points = np.full((1, 5, 2), 200.0)
        points[0, :3] = true[0, :, :2] + np.outer(away, (0.6, 0.8))
        pictures.append(GroundTruth(SIZE, box, np.zeros(1, int), keypoints=true))
        found.append(Detections(box, np.zeros(1, int), np.ones(1), keypoints=points))
    assert OBJECTS["pck"](found, pictures) == {"pck": pytest.approx((1 / 1 + 2 / 3) / 2)}


def test_miss_rate_by_hand():
    """Ten pictures with a person each: a hit, nine false alarms, a second hit, another alarm."""
    person, beside = np.array([[0, 0, 20, 20]], float), np.array([[40, 30, 60, 50]], float)
    hits = {0: 0.99, 1: 0.5}
    found = []
    for i in range(10):
        alarm = 0.4 if i == 9 else 0.9 - i / 100
        boxes, scores = ([person, beside], [hits[i], alarm]) if i in hits else ([beside], [alarm])
        found.append(Detections(np.concatenate(boxes), np.zeros(len(boxes), int), np.array(scores)))
    scores = OBJECTS["crowdhuman"](found, [there(person)] * 10)
    # One of ten is found at every rate up to 0.5623 false alarms a picture, two at 1.
    assert scores == {
        "crowdhuman/AP": pytest.approx(0.1 * 1 + 0.1 * (1 / 10 + 2 / 11) / 2),
        "crowdhuman/mMR": pytest.approx((0.9**8 * 0.8) ** (1 / 9)),
        "crowdhuman/recall": pytest.approx(0.2),
    }


def test_people_are_hit_by_more_than_half():
    person, ignored = np.array([[0, 0, 20, 20]], float), np.array([[40, 0, 80, 60]], float)
    picture = there(np.concatenate([person, ignored]), crowd=np.array([False, True]))
    boxes = np.array([[0, 0, 20, 10], [0, 0, 20, 11], [30, 0, 50, 10], [31, 0, 51, 10]], float)
    rows, people = OBJECTS["crowdhuman"].record(seen(boxes, scores=[0.9, 0.8, 0.7, 0.6]), picture)
    # The first overlaps the person by exactly half, the third the ignored region; the last does not count.
    assert rows.tolist() == [[0.9, 0], [0.8, 1], [0.7, 0]] and people == 1


LARGE = (300, 400)
BOX_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
POSE_KEYS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def crowded(rng):
    """Dozens of small, middling and large objects with their areas, and detections around and beside them."""
    sides = rng.choice([8, 20, 30, 60, 90, 140, 200], (24, 2)).astype(float)
    corners = rng.uniform(0, 100, (24, 2)).round()
    boxes = np.concatenate([corners, corners + sides], axis=1)
    masks = np.zeros((24, *LARGE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0 + (y1 - y0) // 2 :, x0 + (x1 - x0) // 2 :] = False
    points = corners[:, None] + rng.uniform(0, 1, (24, 17, 2)) * sides[:, None]
    visible = rng.choice([0.0, 1.0, 2.0], (24, 17, 1))
    visible[::4] = np.minimum(visible[::4], 1)  # nothing but hidden points
    labels, size = rng.integers(0, 2, 24), sides.prod(1)
    crowd = np.arange(24) == 23
    truth = GroundTruth(
        LARGE, boxes, labels, encode(masks), np.concatenate([points, visible], 2), 0.6 * size, crowd
    )
    moves = rng.normal(0, 0.06, (24, 1)) * np.tile(sides, 2)
    shift = rng.normal(0, 0.03, (24, 17, 2)) * sides[:, None]
    order = rng.permutation(24)
    wrong = np.where(rng.random(24) < 0.2, 1 - labels, labels)
    found = Detections(
        (boxes + moves)[order],
        wrong[order],
        np.sort(rng.random(24))[::-1],
        encode(np.roll(masks, (2, 3), (1, 2))[order]),
        (points + shift)[order],
    )
    return found, truth


@pytest.mark.parametrize(
    "name, kind, keys",
    [("box", "bbox", BOX_KEYS), ("mask", "segm", BOX_KEYS), ("keypoints", "keypoints", POSE_KEYS)],
)
def test_every_value_is_the_one_of_pycocotools(name, kind, keys):
    pairs = [crowded(np.random.default_rng(seed)) for seed in range(3)]
    annotations, entries = [], []
    for image, (found, truth) in enumerate(pairs, start=1):
        for i, (x0, y0, x1, y1) in enumerate(truth.boxes.tolist()):
            points = truth.keypoints[i]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(truth.labels[i]) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(truth.area[i]),
                    "iscrowd": int(truth.crowd[i]),
                    "segmentation": truth.masks[i],
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
        for i, (x0, y0, x1, y1) in enumerate(found.boxes.tolist()):
            what = {
                "bbox": {"bbox": [x0, y0, x1 - x0, y1 - y0]},
                "segm": {"segmentation": found.masks[i]},
                "keypoints": {"keypoints": np.insert(found.keypoints[i], 2, 1, axis=1).ravel().tolist()},
            }
            entry = {"image_id": image, "category_id": int(found.labels[i]) + 1}
            entries.append(entry | {"score": float(found.scores[i])} | what[kind])
    file = COCO()
    images = [{"id": i, "height": LARGE[0], "width": LARGE[1]} for i in (1, 2, 3)]
    file.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    with contextlib.redirect_stdout(io.StringIO()):
        file.createIndex()
        made = COCOeval(file, file.loadRes(entries), kind)
        made.evaluate()
        made.accumulate()
        made.summarize()
    scores = OBJECTS[name](*zip(*pairs, strict=True))
    assert scores == {f"{name}/{key}": value for key, value in zip(keys, made.stats, strict=True)}
    assert len(set(scores.values())) == len(keys) and 0 < min(scores.values()) < max(scores.values()) < 1


def test_the_area_is_the_annotated_one_or_that_of_the_mask_or_of_the_box():
    rounder = fill(TRUE[:1])
    rounder[0, :10, :10] = False
    picture = GroundTruth(SIZE, TRUE[:1], np.zeros(1, int), encode(rounder), area=np.array([7.0]))
    assert picture.areas.tolist() == [7]
    assert dataclasses.replace(picture, area=None).areas.tolist() == [300]
    assert dataclasses.replace(picture, area=None, masks=None).areas.tolist() == [400]


def test_what_is_above_a_threshold_is_not_at_it():
    found = seen(TRUE, scores=[0.7, 0.5, 0.3])
    kept = found.above(0.5)
    np.testing.assert_array_equal(kept.boxes, TRUE[:1])
    np.testing.assert_array_equal(decode(kept.masks[0]), fill(TRUE[:1])[0])
    assert len(found.above(0.2).scores) == 3 and len(found.above(0.7).scores) == 0
