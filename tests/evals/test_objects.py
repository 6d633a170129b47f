# SPDX-License-Identifier: Apache-2.0
"""Every metric of objects: right on perfect predictions, wrong on wrong ones, safe on none."""

import dataclasses
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evals.pictures import SIZE, album, fill, moved, perfect, truth
from vllm2_jax.evals import OBJECTS, coco
from vllm2_jax.evals.crowdhuman import crowdhuman
from vllm2_jax.evals.objects import Detections, GroundTruth, decode, encode, encode_segmentation, nothing
from vllm2_jax.evals.pose import number

# What a perfect prediction scores. The E-measure's curve has one threshold at which all is foreground.
BEST = {"crowdhuman/mMR": 0.0, "count/MAE": 0.0, "count/RMSE": 0.0, "saliency/MAE": 0.0}
PLAIN = [name for name in OBJECTS if name not in ("pck", "refer", "interactive")]


def single(count: int = 4, points: int = 17) -> list[GroundTruth]:
    """Pictures with exactly one object, of the class 0."""
    rng = np.random.default_rng(0)
    return [truth(rng, 1, classes=1, points=points) for _ in range(count)]


def apart(truths: list[GroundTruth]) -> list[GroundTruth]:
    """Every object has its own label, as prompts have."""
    return [dataclasses.replace(t, labels=np.arange(len(t.labels))) for t in truths]


ALBUMS = {
    "pck": single(),
    "refer": single(),
    "interactive": apart(album()),
    "crowdpose": album(points=14),
    "saliency": single(),  # where nothing is salient, the weighted F-measure is 0 whatever is found
}


@pytest.mark.parametrize("name", OBJECTS)
def test_perfect_predictions(name):
    truths = ALBUMS.get(name, album())
    scores = OBJECTS[name]([perfect(t) for t in truths], truths)
    assert scores
    for key, value in scores.items():
        if key.endswith(("AR1", "saliency/E")):  # one detection a picture is not all; see above
            assert 0.3 < value < 1.01
        else:
            assert value == pytest.approx(BEST.get(key, 1.0), abs=1e-9), key


@pytest.mark.parametrize("name", OBJECTS)
def test_worse_predictions_score_worse(name):
    truths = single(points=14 if name == "crowdpose" else 17)
    far = [moved(t, 30.0) for t in truths]
    if name == "count":
        far = [nothing(masks=True, keypoints=17) for _ in truths]
    best, worst = (OBJECTS[name](found, truths) for found in ([perfect(t) for t in truths], far))
    first = next(iter(best))
    assert abs(worst[first] - best[first]) > 0.3


@pytest.mark.parametrize("name", OBJECTS)
def test_nothing_found(name):
    truths = ALBUMS.get(name, album())
    scores = OBJECTS[name]([nothing(masks=True, keypoints=17) for _ in truths], truths)
    assert all(np.isfinite(value) for value in scores.values())
    lost = {k: v for k, v in scores.items() if not k.startswith(("saliency", "count"))}
    assert all(
        value == pytest.approx(1.0 if k.endswith("mMR") else 0.0, abs=1e-6) for k, value in lost.items()
    )


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_there(name):
    empty = truth(np.random.default_rng(0), 0)
    scores = OBJECTS[name]([perfect(single()[0]), nothing(masks=True, keypoints=17)], [empty, empty])
    assert all(np.isfinite(value) for value in scores.values())
    assert not any(key.endswith("AP") for key in scores)


@pytest.mark.parametrize("name", OBJECTS)
def test_no_records(name):
    with pytest.raises(ValueError, match="nothing to score"):
        OBJECTS[name].score([])


def test_average_precision_by_hand():
    # Of two objects one is found, behind a false alarm: precision 1/2 up to recall 1/2, nothing after.
    boxes = np.array([[0, 0, 40, 40], [40, 0, 80, 40]], float)
    there = GroundTruth(SIZE, boxes, np.zeros(2, int))
    found = Detections(np.array([[0, 45, 20, 60], [0, 0, 40, 40.0]]), np.zeros(2, int), np.array([0.9, 0.5]))
    scores = OBJECTS["box"]([found], [there])
    assert scores["box/AP50"] == pytest.approx(0.5 * 51 / 101)  # recalls 0, 0.01 ... 0.50
    assert scores["box/AR100"] == pytest.approx(0.5)
    assert "box/APs" not in scores and "box/APm" in scores


def test_crowds_count_neither_way():
    there = truth(np.random.default_rng(1), 3, classes=1)
    crowd = np.array([False, False, True])
    there = dataclasses.replace(there, crowd=crowd)
    found = perfect(there)
    for name in ("box", "mask"):
        assert OBJECTS[name]([found], [there])[f"{name}/AP"] == pytest.approx(1.0)
    assert OBJECTS["crowdhuman"]([found], [there])["crowdhuman/AP"] == pytest.approx(1.0)


IDS = {"dog": 18, "person": 44}


def test_result_format_is_read_by_pycocotools(capsys):
    truths = album(3)
    found = [moved(t, 2.0) for t in truths]
    entries = [e for i, d in enumerate(found) for e in coco.results(d, i + 7, IDS)]
    entries = json.loads(json.dumps(entries))
    annotations = []
    for i, t in enumerate(truths):
        for box, label, mask in zip(t.boxes, t.labels, t.masks, strict=True):
            x, y, w, h = *box[:2], *(box[2:] - box[:2])
            plain = {"id": len(annotations) + 1, "image_id": i + 7, "category_id": IDS[label]}
            rest = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": mask}
            annotations.append(plain | rest)
    file = COCO()
    file.dataset = {
        "images": [{"id": i + 7, "height": SIZE[0], "width": SIZE[1]} for i in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": number} for number in IDS.values()],
    }
    file.createIndex()
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        plain = [
            {k: v for k, v in e.items() if k != ("bbox" if kind == "segm" else "segmentation")}
            for e in entries
        ]
        made = COCOeval(file, file.loadRes(plain), kind)
        made.evaluate()
        made.accumulate()
        made.summarize()
        ours = OBJECTS[name](found, truths)
        assert ours[f"{name}/AP"] == pytest.approx(made.stats[0])
        assert 0.1 < ours[f"{name}/AP"] < 0.99
    capsys.readouterr()
    entry = coco.results(perfect(truths[0]), 3, IDS)[0]
    assert len(entry["keypoints"]) == 51 and entry["keypoints"][2] == 1.0 and entry["image_id"] == 3


def test_crowdhuman_against_the_rules_one_by_one():
    rng = np.random.default_rng(2)
    truths, found = [], []
    for _ in range(8):
        there = truth(rng, 5, classes=1)
        boxes = np.concatenate([there.boxes + rng.normal(0, 3, (5, 4)), there.boxes[::-1]])
        truths.append(dataclasses.replace(there, crowd=rng.random(5) < 0.3))
        found.append(Detections(boxes, np.zeros(10, int), rng.random(10)))
    scores = crowdhuman()(found, truths)

    rows, people = [], 0
    for there, mine in zip(truths, found, strict=True):
        people += int((~there.crowd).sum())
        taken = set()
        for i in np.argsort(-mine.scores):
            best, at = 0.5, None
            for j in np.flatnonzero(~there.crowd):
                shared, whole = _overlap(mine.boxes[i], there.boxes[j])
                if j not in taken and shared / whole > best:
                    best, at = shared / whole, j
            if at is not None:
                taken.add(at)
                rows.append((mine.scores[i], 1))
            elif not any(
                _overlap(mine.boxes[i], there.boxes[j])[0] / _area(mine.boxes[i]) > 0.5
                for j in np.flatnonzero(there.crowd)
            ):
                rows.append((mine.scores[i], 0))
    hits = np.array([hit for _, hit in sorted(rows, reverse=True)])
    right, wrong = np.cumsum(hits), np.cumsum(1 - hits)
    recall, precision = right / people, right / (right + wrong)
    area = precision[0] * recall[0]
    for k in range(1, len(hits)):
        area += (recall[k] - recall[k - 1]) * (precision[k] + precision[k - 1]) / 2
    missed = []
    for rate in (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0):
        at = next((k for k in range(len(hits)) if wrong[k] / 8 >= rate), len(hits) - 1)
        missed.append(1 - recall[at])
    assert scores["crowdhuman/AP"] == pytest.approx(area)
    assert scores["crowdhuman/recall"] == pytest.approx(recall[-1])
    assert scores["crowdhuman/mMR"] == pytest.approx(np.exp(np.log(missed).mean()))
    assert 0.2 < area < 0.9


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return sides.prod(), _area(a) + _area(b) - sides.prod()


def test_refer_by_hand():
    box = np.array([[0, 0, 10, 10]], float)
    there = GroundTruth(SIZE, box, np.zeros(1, int), encode(fill(box)))
    halves = np.array([[0, 0, 10, 5]], float)  # IoU exactly 0.5, which is not above 0.5
    right = Detections(box, np.zeros(1, int), np.ones(1), encode(fill(box)))
    half = Detections(halves, np.zeros(1, int), np.ones(1), encode(fill(halves)))
    scores = OBJECTS["refer"]([right, half], [there, there])
    for what in ("box", "mask"):
        assert scores[f"refer/{what}/P@0.5"] == 0.5
        assert scores[f"refer/{what}/mIoU"] == pytest.approx(0.75)
        assert scores[f"refer/{what}/cIoU"] == pytest.approx(150 / 200)
    with pytest.raises(ValueError, match="one object"):
        OBJECTS["refer"].record(half, album()[0])


def test_interactive_takes_each_prompts_best_mask():
    there = dataclasses.replace(truth(np.random.default_rng(0), 2), labels=np.arange(2))
    good = perfect(there)
    found = Detections(
        np.concatenate([moved(there, 20).boxes, good.boxes]),
        np.array([0, 1, 0, 1]),
        np.array([0.2, 0.9, 0.8, 0.1]),  # right for the first prompt, wrong for the second
        [*moved(there, 20).masks, *good.masks],
    )
    record = OBJECTS["interactive"].record(found, there)
    assert record[0, 0] == record[0, 1] > 0 and record[1, 0] < record[1, 1]
    missing = dataclasses.replace(good, labels=np.array([0, 7]))
    shared, whole = OBJECTS["interactive"].record(missing, there)[1]
    assert (shared, whole) == (0, decode(there.masks[1]).sum())


def test_pck_by_hand():
    there = GroundTruth(SIZE, np.array([[0, 0, 10, 5.0]]), np.zeros(1, int), keypoints=np.zeros((1, 4, 3)))
    there.keypoints[0, :3, 2] = 2  # the fourth is not visible
    points = np.array([[1.9, 0], [0, 2.0], [0, 0], [50, 50]])  # 2 pixels are 0.2, which is too far
    found = Detections(
        np.zeros((2, 4)), np.zeros(2, int), np.array([0.1, 0.9]), None, np.stack([points * 9, points])
    )
    assert OBJECTS["pck"]([found], [there]) == {"pck": pytest.approx(2 / 3)}
    assert OBJECTS["pck"]([found, nothing(keypoints=4)], [there, there]) == {"pck": pytest.approx(1 / 3)}


def test_crowdpose_scores_each_crowdedness():
    rng = np.random.default_rng(0)
    truths = [
        dataclasses.replace(truth(rng, 2, classes=1, points=14), crowd_index=c) for c in (0.1, 0.5, 0.9)
    ]
    found = [perfect(truths[0]), moved(truths[1], 25), perfect(truths[2])]
    scores = OBJECTS["crowdpose"](found, truths)
    assert scores["crowdpose/APeasy"] == scores["crowdpose/APhard"] == pytest.approx(1.0)
    assert scores["crowdpose/APmedium"] < 0.2 < scores["crowdpose/AP"] < 1
    assert not {"crowdpose/APm", "crowdpose/APl"} & set(scores)


def test_keypoints_of_a_prompt_are_put_in_the_order_of_the_dataset():
    there = single()[0]
    names = [3, 16, 0]
    asked = number(there.keypoints[:, names], names)
    assert asked.shape == (1, 68, 3)
    np.testing.assert_array_equal(asked[0, names], there.keypoints[0, names])
    assert asked[0, :, 2].sum() == 6
    # What was not asked for counts neither as a truth nor as a prediction.
    found = dataclasses.replace(perfect(there), keypoints=number(there.keypoints[:, names, :2], names))
    scores = OBJECTS["keypoints"]([found], [dataclasses.replace(there, keypoints=asked)])
    assert scores["keypoints/AP"] == pytest.approx(1.0)


def test_count_by_hand():
    there = truth(np.random.default_rng(0), 3, classes=1)
    found = dataclasses.replace(perfect(there), scores=np.array([0.9, 0.8, 0.2]))
    assert OBJECTS["count"]([found], [there]) == {"count/MAE": 1.0, "count/RMSE": 1.0, "count/exact": 0.0}


@pytest.mark.parametrize("name", ["mask", "keypoints", "interactive", "saliency"])
def test_missing_masks_or_keypoints_are_named(name):
    there = single()[0]
    boxes = dataclasses.replace(perfect(there), masks=None, keypoints=None)
    with pytest.raises(ValueError, match=r"has none"):
        OBJECTS[name]([boxes], [there])


def test_segmentations_of_annotation_files():
    mask = fill(np.array([[10, 10, 30, 40.0]]))
    polygon = [[10, 10, 30, 10, 30, 40, 10, 40]]
    runs = encode_segmentation(polygon, SIZE)
    np.testing.assert_array_equal(decode(runs), mask[0])
    (ours,) = encode(mask)
    np.testing.assert_array_equal(decode(encode_segmentation(ours, SIZE)), mask[0])
    counts = np.diff(np.flatnonzero(np.diff(mask[0].T.ravel().astype(int), prepend=-1, append=2)))
    counts = [*([0] if mask[0, 0, 0] else []), *counts.tolist()]
    plain = {"size": list(SIZE), "counts": counts}
    np.testing.assert_array_equal(decode(encode_segmentation(plain, SIZE)), mask[0])
