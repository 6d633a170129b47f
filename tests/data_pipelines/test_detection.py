# SPDX-License-Identifier: Apache-2.0
"""Readers of detection: which classes are asked for, where objects lie, what bad files do."""

import collections
import json

import numpy as np
import pytest

from data_pipelines import DATASETS
from data_pipelines.collate import CollateSpec, TaskShape, make_row
from data_pipelines.conversation import link
from data_pipelines.errors import CapacityError, DataError
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.truth import objects_of, picture_size
from tests.data_pipelines.objects import BOXES, HEIGHT, WIDTH, annotation, coco, save_picture, shows, write
from vllm2_jax.evals import EVALS
from vllm2_jax.evals.objects import Detections

CATEGORIES = [{"id": 7, "name": "Horse "}, {"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}]
HORSE, DOG = annotation("horse", category_id=7), annotation("dog", category_id=2)


@pytest.fixture
def folder(tmp_path):
    save_picture(tmp_path)
    return tmp_path


def source(folder, *annotations, categories=CATEGORIES, image=None, **options):
    content = coco(*annotations, image=image, categories=categories)
    return DATASETS["detection"](**write(folder, content), **options)


def asked(example) -> list[str]:
    """Classes of the question, checked against the answer and the list of the evaluation."""
    (who, question), (whom, answer) = example.turns
    assert (who, whom) == ("human", "gpt") and question.startswith("<image>\n")
    names = example.meta["classes"]
    assert ", ".join(names) in question
    assert ", ".join(link(name, "det") for name in names) in answer and answer.count("[DET]") == len(names)
    assert len(set(names)) == len(names)
    return names


def test_without_random_views_training_sees_the_whole_picture(folder):
    whole = source(folder, HORSE, DOG, test=True)[0].targets["grounding_dino"]["image"]
    for seed in range(10):
        example = source(folder, HORSE, DOG, masks=True, augment=False, seed=seed)[0]
        names, targets = asked(example), example.targets["grounding_dino"]
        np.testing.assert_array_equal(targets["image"], whole)
        for label, box in zip(targets["labels"], targets["boxes"], strict=True):
            x0, y0, x1, y1 = BOXES[names[label]]
            true = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
            np.testing.assert_allclose(box, true, rtol=1e-6)


def test_objects_keep_their_masks_boxes_and_links(folder):
    checked = 0
    for seed in range(30):
        example = source(folder, HORSE, DOG, masks=True, seed=seed)[0]
        names, targets = asked(example), example.targets["grounding_dino"]
        for number, label in enumerate(targets["labels"]):
            if targets["boxes"][number, 2:].min() > 0.2:  # interpolation blurs slivers
                shows(example, number, names[label])
                checked += 1
        assert targets["enlarge"] is False and targets["labels"].dtype == np.int64
        assert len(targets["masks"]) == len(targets["boxes"]) == len(targets["labels"])
    assert checked > 30


def test_the_tower_is_mirrored_with_the_decoder(folder):
    left = set()
    for seed in range(20):
        example = source(folder, HORSE, categories=CATEGORIES[:1], image_mode="stretch", seed=seed)[0]
        tower = example.images[0][0].astype(int)
        red = np.flatnonzero((tower[..., 0] - tower[..., 2] > 100).any(0)).mean() < 10
        targets = example.targets["grounding_dino"]
        if len(targets["boxes"]) and targets["boxes"][0, 2] < 0.4:  # the whole picture, or most of it
            left.add((bool(red), bool(targets["boxes"][0, 0] < 0.5)))
    assert left == {(True, True), (False, False)}


def test_classes_are_what_is_there_and_some_that_is_not(folder):
    counts, orders = collections.Counter(), set()
    for seed in range(80):
        example = source(folder, HORSE, DOG, seed=seed)[0]
        names, labels = asked(example), example.targets["grounding_dino"]["labels"]
        assert set(labels.tolist()) <= set(range(len(names)))
        counts[len(names)] += 1
        orders.add(tuple(names))
    assert set(counts) <= {1, 2, 3} and counts[3] > 30  # all of them in half of the records and more
    assert counts[2] > 5 and len(orders) >= 6


def test_more_classes_than_links(folder):
    many = [*CATEGORIES, *({"id": 20 + i, "name": f"thing {i}"} for i in range(40))]
    seen = collections.Counter()
    for seed in range(60):
        example = source(folder, HORSE, DOG, categories=many, classes=5, seed=seed)[0]
        names = asked(example)
        present = {names[i] for i in example.targets["grounding_dino"]["labels"]}
        assert len(names) <= 5
        seen[len(names)] += 1
        seen.update(present)
    assert seen[5] > 3 and seen[2] > 3 and seen["dog"] > 40
    one = {asked(source(folder, HORSE, DOG, classes=1, seed=seed)[0])[0] for seed in range(40)}
    assert {"horse", "dog"} <= one


def test_more_objects_than_places(folder):
    herd = [HORSE] * 4
    for seed in range(20):
        example = source(folder, *herd, DOG, objects=3, seed=seed)[0]
        assert "horse" not in asked(example)  # it would look absent
        assert len(example.targets["grounding_dino"]["boxes"]) <= 1
    with pytest.raises(CapacityError, match=r"image 3: 4 objects of one class .* room for 3.* raise the dat"):
        source(folder, *herd, objects=3)[0]


def test_all_objects_of_a_class_find_a_place_or_none(folder):
    cat = HORSE | {"category_id": 9}
    drawn = set()
    for seed in range(30):
        example = source(folder, HORSE, HORSE, HORSE, DOG, DOG, cat, objects=3, augment=False, seed=seed)[0]
        names = asked(example)
        found = collections.Counter(names[i] for i in example.targets["grounding_dino"]["labels"])
        assert set(names) == set(found)  # what found no place is not asked for as if it were absent
        drawn.add(frozenset(found.items()))
    assert drawn == {frozenset({("horse", 3)}), frozenset({("dog", 2), ("cat", 1)})}


@pytest.mark.parametrize("more", [{}, {"neg_category_ids": [7, 9]}])
def test_classes_marked_in_part_are_never_asked_for_as_absent(folder, more):
    image = {"not_exhaustive_category_ids": [7], **more}
    for annotations in ([HORSE, DOG], [DOG]):
        asks = [set(asked(source(folder, *annotations, image=image, seed=seed)[0])) for seed in range(20)]
        assert set.union(*asks) == {"dog", "cat"}


def test_federated_files(folder):
    """LVIS: negatives are those that somebody looked for; classes marked in part are not asked for."""
    image = {"neg_category_ids": [9], "not_exhaustive_category_ids": [7]}
    many = [*CATEGORIES, {"id": 11, "name": "bow_(weapon)"}]
    for seed in range(20):
        train = source(folder, HORSE, DOG, categories=many, image=image, seed=seed)[0]
        assert set(asked(train)) <= {"dog", "cat"} and "dog" in asked(train)
    tested = source(folder, HORSE, DOG, categories=many, image=image, masks=True, clean_names=True, test=True)
    example = tested[0]
    assert asked(example) == ["horse", "dog", "cat", "bow weapon"]
    found = objects_of(example, "grounding_dino")
    assert found.labels.tolist() == ["horse", "dog", "horse", "bow weapon"]
    assert found.crowds.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(found.boxes[2:], [[0, 0, WIDTH, HEIGHT]] * 2)
    # A second horse that nobody marked is no mistake; without LVIS' fields it is.
    boxes = np.array([[30, 0, 40, 9], BOXES["horse"]], np.float64)
    horses = Detections(boxes, np.array(["horse", "horse"]), np.array([0.9, 0.5]))
    plain = objects_of(source(folder, HORSE, test=True)[0], "grounding_dino")
    partly = objects_of(source(folder, HORSE, image=image, test=True)[0], "grounding_dino")
    for truth, precision in ((partly, 1.0), (plain, 0.5)):
        score = EVALS["box"].score([EVALS["box"].record(horses, truth)])
        assert score["box/AP"] == pytest.approx(precision)
    nothing = source(folder, HORSE, image={"neg_category_ids": [], "not_exhaustive_category_ids": [7]})
    with pytest.raises(DataError, match="image 3: no object is left and no class is known to be absent"):
        nothing[0]


def test_tests_ask_for_all_classes_part_by_part(folder):
    tiny = {"bbox": [0, 0, 0.5, 0.5], "category_id": 2, "area": 0.25}
    crowd = {"bbox": [0, 0, 40, 20], "category_id": 7, "iscrowd": 1, "area": 800}
    parts = source(folder, HORSE | {"area": 9}, DOG | {"area": 8}, tiny, crowd, classes=2, test=True)
    assert len(parts) == 2
    assert [asked(example) for example in (parts[0], parts[1])] == [["horse", "dog"], ["cat"]]
    found = objects_of(parts[0], "grounding_dino")
    assert found.labels.tolist() == ["horse", "dog", "horse", "dog"]
    assert found.crowds.tolist() == [False, False, True, False]
    assert found.areas.tolist() == [9, 8, 800, 0.25]
    np.testing.assert_array_equal(found.boxes[0], BOXES["horse"])
    assert len(objects_of(parts[1], "grounding_dino").labels) == 0
    assert picture_size(parts[0], "grounding_dino") == (HEIGHT, WIDTH)
    assert len(parts[0].targets["grounding_dino"]["boxes"]) == 0
    assert parts[0].targets["grounding_dino"]["image"].shape == (80, 160, 3)
    assert parts[0].turns[0][1] == "<image>\nFind every horse, dog in the picture."


def test_rows_of_a_batch(folder):
    """Reader and collator agree: what was drawn fits the task's shape, and no picture is enlarged."""
    spec = CollateSpec(length=400, tile_size=20, tokens_per_tile=4)
    shape = TaskShape(1, "grounding_dino", tiles=5, links={"det": 2}, capacities={"size": 192, "objects": 2})
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    for seed in range(10):
        example = source(folder, HORSE, HORSE, HORSE, DOG, masks=True, classes=2, objects=2, seed=seed)[0]
        row = make_row(example, tokenizer, spec, shape)
        targets = row.targets["grounding_dino"]
        assert row.link_valid.sum() == len(example.meta["classes"])
        assert targets["size"].max() <= 160
        assert row.counters == {"skipped": 0, "dropped_links": 0, "dropped_targets": 0}
        assert targets["mask_valid"].sum() == len(example.targets["grounding_dino"]["boxes"])


def test_pictures_without_objects(folder):
    assert len(source(folder)) == 0
    tested = source(folder, test=True)
    assert len(tested) == 1 and len(objects_of(tested[0], "grounding_dino").labels) == 0
    sizes = [len(source(folder, HORSE, image={"height": height})) for height in (31, 32)]
    assert sizes == [0, 1]  # too small to learn from


def test_boxes_outside_or_without_extent(folder):
    outside = [HORSE | {"bbox": box} for box in ([90, 0, 9, 9], [3, 3, 0, 5], [3, 3, 0.5, 5], [-9, 0, 9, 9])]
    assert len(source(folder, *outside)) == 0
    half = HORSE | {"bbox": [-20, 8, 44, 22]}  # cut at the border: 0 to 24
    for seed in range(10):
        example = source(folder, half, *outside, masks=False, seed=seed)[0]
        boxes = example.targets["grounding_dino"]["boxes"]
        assert len(boxes) <= 1
        assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all()
        assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 1 + 1e-6).all()


def test_thin_outlines_keep_an_object(folder):
    thin = {
        "bbox": [10.1, 5, 1.2, 20],
        "category_id": 2,
        "segmentation": [[10.6, 5, 11.4, 5, 11.4, 25, 10.6, 25]],
    }
    kept = [source(folder, thin, masks=True, seed=s)[0].targets["grounding_dino"] for s in range(10)]
    assert any(len(targets["boxes"]) for targets in kept)
    assert all(targets["masks"].any((1, 2)).all() for targets in kept)


def test_objects_to_ignore_are_not_taught_and_count_neither_way(folder):
    ignored = DOG | {"ignore": 1}
    for seed in range(10):
        example = source(folder, HORSE, ignored, augment=False, seed=seed)[0]
        assert len(example.targets["grounding_dino"]["boxes"]) == 1
    found = objects_of(source(folder, HORSE, ignored, test=True)[0], "grounding_dino")
    assert found.labels.tolist() == ["horse", "dog"] and found.crowds.tolist() == [False, True]


def test_duplicate_names_are_one_class(folder):
    twice = [*CATEGORIES, {"id": 30, "name": "DOG"}]
    example = source(folder, DOG | {"category_id": 30}, categories=twice, test=True)[0]
    assert asked(example) == ["horse", "dog", "cat"]
    assert objects_of(example, "grounding_dino").labels.tolist() == ["dog"]


def test_areas_may_be_unknown(folder):
    examples = [source(folder, HORSE | {"area": area}, test=True)[0] for area in (9, None)]
    assert ["area" in example.meta["truth"] for example in examples] == [True, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"category_id": 5}, "annotation 100, field 'category_id': 5 is none of the file's categories"),
        ({"segmentation": [[1, 2]]}, "annotation 100, field 'segmentation': a polygon has 2 numbers"),
        ({"segmentation": "x"}, "annotation 100, field 'segmentation': 'x' is a str"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}},
            "annotation 100, field 'segmentation': run lengths cover 5 pixels of 3200",
        ),
    ],
)
@pytest.mark.parametrize("test", [False, True])
def test_bad_annotations(folder, bad, message, test):
    with pytest.raises(DataError, match=message):
        source(folder, HORSE | bad, masks=True, test=test)[0]


def test_bad_files(folder):
    with pytest.raises(DataError, match="field 'categories': the file lists no categories"):
        source(folder, HORSE, categories=[])
    with pytest.raises(DataError, match="category 7, field 'name': ' ' is no name"):
        source(folder, HORSE, categories=[{"id": 7, "name": " "}])
    with pytest.raises(DataError, match=r"record image 3: the picture is \(40, 80\)"):
        source(folder, HORSE, image={"width": 81})[0]
    with pytest.raises(DataError, match=r"b\.png, record image 3, field 'file_name': no such picture"):
        source(folder, HORSE, image={"file_name": "b.png"})[0]
    with pytest.raises(ValueError, match="classes 0 and objects 100 have to be positive"):
        source(folder, HORSE, classes=0)


PERSON = {"tag": "person", "fbox": [4, 8, 20, 22], "vbox": [4, 8, 20, 11]}


def crowd(folder, *boxes, name="a", **options):
    save_picture(folder, f"{name}.jpg")
    path = folder / "people.odgt"
    path.write_text(json.dumps({"ID": name, "gtboxes": list(boxes)}) + "\n\n")
    return DATASETS["crowdhuman"](
        annotations=str(path), image_root=str(folder), tile_size=20, decoder_size=160, **options
    )


def test_crowdhuman(folder):
    outside = {"tag": "person", "fbox": [-10, 0, 30, 60], "vbox": [0, 0, 20, 40], "extra": {"box_id": 1}}
    ignored = [PERSON | {"extra": {"ignore": 1}}, {"tag": "mask", "fbox": [50, 2, 24, 18]}]
    people = (PERSON, outside, *ignored)
    for seed in range(10):
        example = crowd(folder, *people, seed=seed)[0]
        assert asked(example) == ["person"]
        boxes = example.targets["grounding_dino"]["boxes"]
        assert 1 <= len(boxes) <= 2 and "masks" not in example.targets["grounding_dino"]
        assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all()
    example = crowd(folder, *people, test=True)[0]
    found = objects_of(example, "grounding_dino")
    # Full bodies reach outside of the picture; evaluation takes them as they are.
    np.testing.assert_array_equal(found.boxes[:2], [[4, 8, 24, 30], [-10, 0, 20, 60]])
    assert found.crowds.tolist() == [False, False, True, True]
    visible = crowd(folder, PERSON, box="vbox", test=True)[0]
    np.testing.assert_array_equal(objects_of(visible, "grounding_dino").boxes, [[4, 8, 24, 19]])


def test_crowdhuman_bad_files(folder):
    assert len(crowd(folder, {"tag": "mask", "fbox": [0, 0, 9, 9]})) == 0
    assert len(crowd(folder, test=True)) == 1
    with pytest.raises(DataError, match=r"people\.odgt, record line 1, field 'fbox': \[1\] is not x, y"):
        crowd(folder, {"tag": "person", "fbox": [1]})
    with pytest.raises(DataError, match="line 1, field 'vbox': the field is missing"):
        crowd(folder, {"tag": "person", "fbox": [1, 2, 3, 4]}, box="vbox")
    with pytest.raises(ValueError, match="unknown box 'hbox', there are fbox, vbox"):
        crowd(folder, PERSON, box="hbox")
    (folder / "people.odgt").write_text('{"ID": "a", "gtboxes": []}\n{"ID"\n')
    options = {"annotations": str(folder / "people.odgt"), "image_root": str(folder), "tile_size": 20}
    with pytest.raises(DataError, match=r"people\.odgt, record line 2: not JSON"):
        DATASETS["crowdhuman"](**options)
    (folder / "people.odgt").write_text("[]\n")
    with pytest.raises(DataError, match=r"people\.odgt, record line 1: no object"):
        DATASETS["crowdhuman"](**options)
    (folder / "people.odgt").write_bytes(b'{"ID": "caf\xe9", "gtboxes": []}\n')
    with pytest.raises(DataError, match=r"people\.odgt: not UTF-8"):
        DATASETS["crowdhuman"](**options)
    (folder / "people.odgt").write_text('{"ID": "b", "gtboxes": []}\n')
    with pytest.raises(DataError, match=r"b\.jpg, record ID b, field 'ID': no such picture"):
        DATASETS["crowdhuman"](**options, test=True)[0]
