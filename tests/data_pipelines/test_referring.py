# SPDX-License-Identifier: Apache-2.0
"""Referring expressions in their three layouts; the picture has a red horse (left) and a blue dog (right)."""

import json

import numpy as np
import pytest

from data_pipelines import DATASETS
from data_pipelines.errors import DataError
from data_pipelines.masks import run_lengths, segmentation_mask
from data_pipelines.templates import TEMPLATES
from launch.truth import objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals.objects import decode

load = DATASETS["referring"]


@pytest.fixture
def folder(tmp_path):
    objects.save_picture(tmp_path)
    return tmp_path


def one(name="horse", *texts, **image) -> dict:
    image["expressions"] = list(texts) or ["the horse on the LEFT!"]
    return objects.coco(objects.annotation(name), image=image)


def references(folder, *records, name="refs.json") -> dict:
    instances = objects.write(folder, objects.coco(objects.annotation("horse"), objects.annotation("dog")))
    return objects.write(folder, list(records), name) | {"instances": instances["annotations"]}


def test_coco_layout_in_tests(folder):
    source = load(**objects.write(folder, one("horse", "Left horse.", "red animal/horse")), test=True)
    assert len(source) == 2  # each expression is asked
    first, second = source[0], source[1]
    assert first.turns[0] == ("human", "<image>\nShow me left horse.")
    assert first.turns[1] == ("gpt", f"It is [GRD]{objects.COUNTS_TEXT}.")
    assert second.turns[0][1].endswith("red animal horse.")
    objects.shows(first, 0, "horse")
    assert first.targets["grounding_dino"]["image"].shape[:2] == (80, 160)
    truth = objects_of(first, "grounding_dino")
    assert truth.size == (objects.HEIGHT, objects.WIDTH) and truth.boxes.tolist() == [[4, 8, 24, 30]]
    np.testing.assert_array_equal(decode(truth.masks[0]), objects.mask("horse"))
    assert truth.labels.tolist() == first.meta["classes"] == ["left horse"]


def test_training_draws_views_and_swaps_words_with_the_picture(folder):
    options = objects.write(folder, one("horse", "left horse"))
    mirrored = set()
    for seed in range(12):
        example = load(**options, seed=seed)[0]
        objects.shows(example, 0, "horse")
        words = "right" if "right horse" in example.turns[0][1] else "left"
        # The tower's whole picture shows the red horse on the side that the words say.
        whole = example.images[0][-1].astype(int)
        red = (whole[..., 0] - whole[..., 2] > 150).nonzero()[1].mean() / objects.TILE
        assert (red > 0.5) == (words == "right")
        mirrored.add(words)
        assert "truth" not in example.meta
    assert mirrored == {"left", "right"}
    objects.same(load(**options, seed=5)[0], load(**options, seed=5)[0])


def test_all_expressions_and_wordings_are_drawn(folder):
    options = objects.write(folder, one("dog", "a", "b", "c"))
    examples = [load(**options, seed=seed)[0] for seed in range(40)]
    assert {example.meta["expression"] for example in examples} == {"a", "b", "c"}
    asked = {e.turns[0][1].removeprefix("<image>\n") for e in examples}
    known = {text.replace("{expression}", e) for text in TEMPLATES["referring"] for e in "abc"}
    assert asked <= known and len(asked) > 8


@pytest.mark.parametrize("name", ["refs.json", "refs.jsonl"])
def test_references_by_id(folder, name):
    record = {"ref_id": 7, "ann_id": 101, "image_id": 3, "split": "val"}
    options = references(
        folder,
        record | {"sentences": ["blue dog", {"sent": "the dog", "raw": "The dog"}]},
        record | {"ref_id": 8, "ann_id": 100, "split": "train", "sentences": ["horse"]},
        name=name,
    )
    source = load(**options, split="val", test=True)
    assert [source[i].meta["expression"] for i in range(len(source))] == ["blue dog", "the dog"]
    objects.shows(source[0], 0, "dog")
    assert source[0].record == "7" and len(load(**options)) == 2


def test_boxes_without_outline(folder):
    content = one("dog", "dog")
    del content["annotations"][0]["segmentation"]
    example = load(**objects.write(folder, content), test=True)[0]
    assert "masks" not in example.targets["grounding_dino"]
    truth = objects_of(example, "grounding_dino")
    assert truth.masks is None and truth.boxes.tolist() == [[50, 2, 74, 20]]


def test_crowds_and_bad_boxes(folder):
    content = one("dog", "dogs")
    content["annotations"][0] |= {"iscrowd": 1}
    assert len(load(**objects.write(folder, content), test=True)[0].targets["grounding_dino"]["boxes"]) == 1
    content["annotations"][0] |= {"bbox": [50, 2, 0, 18]}
    example = load(**objects.write(folder, content), test=True)[0]
    assert objects_of(example, "grounding_dino").boxes.tolist() == [[50, 2, 74, 20]]  # of the outline
    del content["annotations"][0]["segmentation"]
    with pytest.raises(DataError, match="record image 3, field 'bbox': the object has no outline, and"):
        load(**objects.write(folder, content))[0]


def test_reasoning_in_coco_layout(folder):
    content = one("dog", "What could guard the house?", answer="Dogs, here on the right, guard houses.")
    options = objects.write(folder, content)
    for seed in range(8):
        question, answer = (text for _, text in load(**options, seed=seed)[0].turns)
        assert question == "<image>\nWhat could guard the house?"  # as it is
        assert answer.endswith("guard houses.") and "[GRD]" in answer
    assert load(**options, test=True)[0].turns[1][1] == f"It is [GRD]{objects.COUNTS_TEXT}."


def test_explanations_change_sides_with_the_picture(folder):
    """The dog on the right is on the left of a mirrored picture, in question and answer."""
    options = objects.write(folder, one("dog", "the right animal", answer="Dogs, on the right, guard."))
    sides = set()
    for seed in range(12):
        example = load(**options, seed=seed)[0]
        question, answer = (text for _, text in example.turns)
        assert ("right animal" in question) == ("on the right," in answer)
        assert ("left animal" in question) == ("on the left," in answer)
        whole = example.images[0][-1].astype(int)
        blue = (whole[..., 2] - whole[..., 0] > 150).nonzero()[1].mean() / objects.TILE
        assert (blue > 0.5) == ("on the right," in answer)
        sides.add(bool(blue > 0.5))
    assert sides == {True, False}


def reasonseg(folder, **more) -> dict:
    shapes = [
        {"label": "target", "points": np.reshape(objects.polygon("dog"), (-1, 2)).tolist()},
        {"label": "ignore", "points": [[50, 2], [60, 2], [60, 20], [50, 20]]},
        {"label": "flag", "points": [[0, 0]]},
    ]
    record = {"text": ["the guardian"], "is_sentence": False, "shapes": shapes} | more
    (folder / "scene.json").write_text(json.dumps(record))
    objects.save_picture(folder, "scene.jpg")
    return {"annotations": str(folder), "image_root": str(folder), "tile_size": 20, "decoder_size": 80}


def test_reasonseg_folder(folder):
    example = load(**reasonseg(folder), test=True)[0]
    assert example.turns[0][1] == "<image>\nShow me the guardian." and example.record == "scene"
    wanted = objects.mask("dog")
    wanted[:, :60] = False
    np.testing.assert_array_equal(decode(objects_of(example, "grounding_dino").masks[0]), wanted)
    np.testing.assert_array_equal(example.targets["grounding_dino"]["masks"][0][: objects.HEIGHT], wanted)
    asked = load(**reasonseg(folder, text=["Who guards?"], is_sentence=True))[0]
    assert asked.turns[0][1] == "<image>\nWho guards?"
    options = reasonseg(folder, text=["the cafe"])
    latin = (folder / "scene.json").read_text().replace("cafe", "caf\xe9").encode("cp1252")
    (folder / "scene.json").write_bytes(latin)
    assert load(**options, test=True)[0].meta["expression"] == "the caf\xe9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one("dog", " "), r"image 3, field 'expressions': \[' '\] is no list of texts"),
        (objects.coco(objects.annotation("dog")), "image 3, field 'expressions': the field is missing"),
        (one() | {"annotations": []}, "image 3, field 'annotations': 0 objects"),
        ({"a": 1}, "neither a COCO file nor a list of references"),
        ([{"ann_id": 1, "sentences": ["x"]}], "set `instances`"),
    ],
)
def test_bad_files(folder, content, message):
    with pytest.raises(DataError, match=message) as found:
        load(**objects.write(folder, content))
    assert "records.json" in str(found.value) and found.value.remedy


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentences": ["x"]}, "record 0, field 'ann_id': the field is missing"),
        ({"ref_id": 5, "ann_id": 9, "sentences": ["x"]}, "record 5, field 'ann_id': 9 is no annotation"),
        ({"ann_id": 100}, "record 0, field 'sentences': the field is missing"),
        ({"ann_id": 100, "sentences": ["x"], "split": "b"}, "no reference of the split 'a'"),
    ],
)
def test_bad_references(folder, record, message):
    with pytest.raises(DataError, match=message):
        load(**references(folder, record), split="a" if "split" in record else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "b.png"}, "b.png, record image 3, field 'file_name': no such picture.*Remedy"),
        ({"height": 41}, r"record image 3: the picture is \(40, 80\).* are for \(41, 80\).*Remedy"),
        ({"expressions": ["?!"]}, r"record image 3, field 'expressions': '\?!' has no words"),
    ],
)
def test_bad_pictures(folder, change, message):
    content = one()
    content["images"][0] |= change
    source = load(**objects.write(folder, content))
    with pytest.raises(DataError, match=message):
        source[0]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[90, 50, 95, 50, 95, 55]], "image 3, field 'segmentation': no pixel of the object lies in"),
        ([[1, 2, 3]], "image 3, field 'segmentation': a polygon has 3 numbers"),
        ({"counts": "041N0", "size": [9, 9]}, r"run lengths are for \[9, 9\]"),
    ],
)
def test_bad_outlines(folder, segmentation, message):
    content = one()
    content["annotations"][0]["segmentation"] = segmentation
    source = load(**objects.write(folder, content))
    with pytest.raises(DataError, match=message):
        source[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": []}, "record scene, field 'shapes': no shape with the label 'target'"),
        ({"is_sentence": "no"}, "record scene, field 'is_sentence': 'no' is a str"),
        ({"shapes": [[1, 2]]}, r"scene.json, record scene, field 'shapes': \[1, 2\] is no shape"),
        (
            {"shapes": [{"label": "target", "points": [1, 2, 3]}]},
            r"scene.json, record scene, field 'points': \[1, 2, 3\] is not a list of points",
        ),
        (
            {"shapes": [{"label": "target", "points": [[1, 2], [3, 4], [5]]}]},
            "scene.json, record scene, field 'points': .* is not a list of points",
        ),
    ],
)
def test_bad_reasonseg(folder, change, message):
    with pytest.raises(DataError, match=message):
        load(**reasonseg(folder, **change))


def test_empty_reasonseg_folder(folder):
    with pytest.raises(DataError, match="no JSON in this folder"):
        load(**{**reasonseg(folder), "annotations": str(folder.parent)})


def test_options_of_another_layout_are_refused(folder):
    options = reasonseg(folder)
    with pytest.raises(DataError, match=r"`split` is for lists of references, which this is not. Remedy"):
        load(**options, split="val")
    with pytest.raises(DataError, match=r"records.json: `instances` is for lists of references"):
        load(**objects.write(folder, one()), instances="instances.json")


def test_run_lengths_are_the_inverse_of_drawing():
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 5)) < 0.4 for _ in range(20)] + [np.zeros((7, 5), bool), np.ones((7, 5), bool)]
    for mask in masks:
        found = run_lengths(mask)
        assert sum(found["counts"]) == 35
        np.testing.assert_array_equal(segmentation_mask(found, 7, 5).astype(bool), mask)
