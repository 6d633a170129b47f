# SPDX-License-Identifier: Apache-2.0
"""What is written of what a decoder found; from questions to findings see test_perceive.py."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import draw
from data_pipelines.example import Example
from launch.perceive import Seen
from launch.predict import Asked, main, no_objects, write
from tests.evals.pictures import SIZE, fill
from vllm2_jax.evals.objects import Detections, encode
from vllm2_jax.evals.semantic import LabelMap

GREY = np.full((*SIZE, 3), 128, np.uint8)
BOXES = np.array([[45, 20, 75, 50], [5, 20, 35, 50], [30, 52, 50, 59]], float)


def written(tmp_path, asked, threshold=0.5, classes=None, **changes):
    """Lines, JSON and drawing of three objects with falling scores."""
    fields = {"labels": np.array(["dog", "cat", "dog"]), "scores": np.array([0.9, 0.6, 0.5])}
    objects = Detections(BOXES, **fields | changes)
    seen = Seen(0, Example("x", "x", "0", []), "grounding_dino", objects, classes)
    lines = write(tmp_path / "found", seen, GREY, asked, threshold)
    drawn = np.asarray(Image.open(tmp_path / "found.png"))
    return lines, json.loads((tmp_path / "found.json").read_text()), drawn


def test_only_what_is_above_the_threshold_is_written_and_drawn(tmp_path):
    lines, found, drawn = written(tmp_path, Asked("det", ("dog", "bird", "cat", "dog")))
    assert lines[:-1] == ["dog 0.900", "cat 0.600"]
    assert found["image"] == "found" and found["size"] == list(SIZE)
    kinds = [(kind["id"], kind["name"]) for kind in found["categories"]]
    assert kinds == [(1, "dog"), (2, "bird"), (3, "cat")]
    assert found["annotations"] == [
        {"image_id": "found", "category_id": 1, "bbox": [45, 20, 30, 30], "score": 0.9},
        {"image_id": "found", "category_id": 3, "bbox": [5, 20, 30, 30], "score": 0.6},
    ]
    # Colours follow the question, not what was found.
    assert tuple(drawn[40, 45]) == draw.colour_of(0) and tuple(drawn[40, 5]) == draw.colour_of(2)
    assert (drawn[58, 30:50] == 128).all()
    lines, found, drawn = written(tmp_path, Asked("det", ("cat", "dog")), threshold=0.4)
    assert len(lines) - 1 == len(found["annotations"]) == 3 and tuple(drawn[58, 45]) == draw.colour_of(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task det --classes a --phrase b", "--phrase is for --task grd; leave it out of --task det"),
        ("--task det --classes a --prompt b", "--prompt is for --task gen or edit; leave it out"),
        ("--task gen --prompt b --classes a", "--classes is for --task det or"),
        ("--task grd --phrase b --classes a", "--phrase and --classes: give one of them"),
        ("--task det --classes a --threshold 7", "--threshold=7.0: give a score from 0 to 1"),
        ("--task det --classes a --max_tiles 0", "--max_tiles=0: give at least 1"),
        ("--task gen --prompt b --guidance nan", "--guidance=nan: give a number"),
        ("--task det --classes a --image gone.png", "gone.png: no such picture"),
    ],
)
def test_options_that_do_not_fit_are_named(monkeypatch, capsys, options, message):
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", "gone", *options.split()])
    assert main() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
def test_a_phrase_gets_the_best_object_whatever_its_score(tmp_path, threshold):
    asked = Asked("grd", ("the dog",))
    masks = encode(fill(BOXES))
    labels = np.array(["the dog"] * 3)
    lines, found, drawn = written(tmp_path, asked, threshold, labels=labels, masks=masks)
    assert lines[:-1] == ["the dog 0.900"]
    (entry,) = found["annotations"]
    assert entry["bbox"] == [45, 20, 30, 30] and entry["segmentation"]["size"] == list(SIZE)
    assert entry["segmentation"]["counts"] == masks[0]["counts"].decode()
    assert (drawn[25:45, 10:30] == 128).all() and (drawn[25:45, 50:70] != 128).any(-1).all()


def test_keypoints_are_those_that_were_asked_for(tmp_path):
    points = np.zeros((3, 68, 2))
    points[:, 0], points[:, 1] = BOXES[:, :2] + 15, BOXES[:, :2] + (20, 5)
    asked = Asked("pose", ("dog", "cat"), ("left eye", "right eye"))
    _, found, drawn = written(tmp_path, asked, keypoints=points)
    assert found["categories"][0]["keypoints"] == ["left eye", "right eye"]
    assert [entry["keypoints"] for entry in found["annotations"]] == [
        [60, 35, 1, 65, 25, 1],
        [20, 35, 1, 25, 25, 1],
    ]
    assert tuple(drawn[35, 60]) == (0, 190, 70) and tuple(drawn[25, 65]) == (235, 40, 40)


def test_classes_of_pixels_are_written_as_numbers_and_shares(tmp_path):
    labels = np.zeros(SIZE, int)
    labels[:15], labels[15:21, :20] = 2, 1
    names = ("sky", "sea", "sand")
    lines, found, drawn = written(
        tmp_path, Asked("seg", names), threshold=1.0, classes=LabelMap(labels, names)
    )
    assert found["annotations"] == [] and [c["name"] for c in found["categories"]] == list(names)
    assert lines[:3] == ["sky 72.5% of the picture", "sea 2.5% of the picture", "sand 25.0% of the picture"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "found_classes.png")), labels)
    assert str(tmp_path / "found.png") in lines[3]
    assert len({tuple(drawn[y, x]) for y, x in ((12, 75), (17, 17), (58, 2))}) == 3


def test_targets_of_a_picture_to_look_at():
    found = no_objects(GREY, Asked("pose", ("dog",), ("nose", "tail")))
    shapes = {name: np.shape(value) for name, value in found.items() if name != "image"}
    assert shapes.pop("keypoint_ids") == (2,) and found["keypoint_ids"].tolist() == [0, 1]
    assert all(shape[0] == 0 for shape in shapes.values()) and shapes["masks"] == (0, *SIZE)
    assert "keypoints" not in no_objects(GREY, Asked("det", ("dog",)))
