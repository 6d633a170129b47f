# SPDX-License-Identifier: Apache-2.0
"""Example pictures with masks, and a last picture to do the same with."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS
from data_pipelines.errors import DataError
from launch.truth import objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals.objects import decode

load = DATASETS["in_context"]
QUESTION = "<image>\nThis is one: <mask>. And two: <image>\n<mask>, <mask>. Now here: <image>\nWhere is it?"


@pytest.fixture
def folder(tmp_path):
    objects.save_picture(tmp_path)
    Image.fromarray(np.full((60, 30, 3), 7, np.uint8)).save(tmp_path / "tall.png")
    tall = np.zeros((60, 30), np.uint8)
    tall[:30] = 255
    objects.save_mask(tmp_path / "tall_mask.png", tall)
    for name in objects.BOXES:
        objects.save_mask(tmp_path / f"{name}.png", objects.mask(name).astype(np.uint8) * 255)
    return tmp_path


def record(question=QUESTION, answer="At <mask>.", **more) -> dict:
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    images = ["tall.png", "a.png", "a.png"]
    masks = ["tall_mask.png", "dog.png", "horse.png", "dog.png"]
    return {"id": "r7", "image": images, "mask": masks, "conversations": talk} | more


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_masks_become_regions_and_a_link(folder, name):
    example = load(**objects.write(folder, [record()], name), test=True)[0]
    region = "<reg>region<region></reg>"
    assert example.turns == [
        ("human", QUESTION.replace("<mask>", region)),
        ("gpt", f"At [DET]{objects.COUNTS_TEXT}."),
    ]
    assert [len(tiles) for tiles in example.images] == [3, 3, 3]
    assert example.region_images.tolist() == [0, 1, 1]
    # Regions are stretched as the last tile of their picture: the upper half of 20 x 20.
    np.testing.assert_array_equal(example.regions[0].all(1), np.arange(20) < 10)
    for number, animal in ((1, "dog"), (2, "horse")):
        inside = example.images[1][-1][example.regions[number].astype(bool)].astype(int)
        assert np.median(np.abs(inside - objects.COLOURS[animal]).sum(1)) < 60
    objects.shows(example, 0, "dog")
    assert example.targets["grounding_dino"]["labels"].tolist() == [0]
    truth = objects_of(example, "grounding_dino")
    np.testing.assert_array_equal(decode(truth.masks[0]), objects.mask("dog"))
    assert truth.labels.tolist() == example.meta["classes"] == ["object 1"]
    assert "truth" not in load(**objects.write(folder, [record()]))[0].meta


def test_answers_in_words(folder):
    words = record(answer="a dog", mask=["tall_mask.png", "dog.png", "horse.png"])
    example = load(**objects.write(folder, [words]))[0]
    assert example.turns[1] == ("gpt", "a dog") and example.targets == {} and len(example.regions) == 3
    bare = record("<image> is grey. <image>?", "red", image=["tall.png", "a.png"])
    del bare["mask"]
    example = load(**objects.write(folder, [bare]), image_mode="pad")[0]
    assert example.regions.shape == (0, 20, 20) and [len(tiles) for tiles in example.images] == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ["a.png"]}, "record r7, field 'conversations': the texts name 3 pictures and 4 masks"),
        ({"mask": ["dog.png"]}, "there are 3 and 1"),
        ({"question": "<mask> <image><image><mask><image><mask>"}, "a mask comes before the first picture"),
        ({"image": ["tall.png", "b.png", "a.png"]}, "b.png, record r7, field 'image': no such picture"),
        ({"mask": ["tall_mask.png", "b.png", "dog.png", "dog.png"]}, "b.png, record r7: no such mask"),
        ({"mask": ["dog.png"] * 4}, r"dog.png, record r7: the mask is \(40, 80\).*its picture \(60, 30\)"),
        ({"mask": ["tall_mask.png", "dog.png", "dog.png", "none.png"]}, "none.png, record r7, field 'mask'"),
        ({"image": "a.png"}, "field 'image': 'a.png' is a str"),
        ({"image": [3]}, r"field 'image': \[3\] is no list of paths"),
        ({"conversations": []}, "field 'conversations': no turns"),
    ],
)
def test_bad_records(folder, change, message):
    objects.save_mask(folder / "none.png", np.zeros((40, 80), np.uint8))
    source = load(**objects.write(folder, [record(**change)]))
    with pytest.raises(DataError, match=message) as found:
        source[0]
    assert found.value.remedy


def test_a_damaged_mask(folder):
    (folder / "dog.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"dog.png, record r7: cannot be decoded"):
        load(**objects.write(folder, [record()]))[0]
