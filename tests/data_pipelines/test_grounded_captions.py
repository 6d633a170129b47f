# SPDX-License-Identifier: Apache-2.0
"""Conversations whose answers point at boxes."""

import numpy as np
import pytest

from data_pipelines import DATASETS
from data_pipelines.errors import DataError
from data_pipelines.templates import TEMPLATES
from launch.truth import objects_of
from tests.data_pipelines import objects

load = DATASETS["grounded_captions"]
ROI = "<roi><ground_box></roi>"
TWO = "<roi><ground_box><ground_box></roi>"
ANSWER = f"<p>Two animals</p> {TWO} and <p>a dog</p>{ROI}."


@pytest.fixture
def folder(tmp_path):
    objects.save_picture(tmp_path)
    return tmp_path


def record(*texts, box_inds=((1, 0, 1),), **more) -> dict:
    texts = texts or ("<image>\nWhat is there?", ANSWER)
    turns = [{"value": text} for text in texts]
    for turn, numbers in zip(turns[1::2], box_inds, strict=True):
        turn |= {} if numbers is None else {"box_inds": list(numbers)}
    boxes = [objects.annotation(name)["bbox"] for name in ("horse", "dog")]
    size = {"file_name": "a.png", "height": 40, "width": 80}
    return {"id": 5, **size, "boxes": boxes, "conversation": turns} | more


def test_links_stand_for_regions(folder):
    example = load(**objects.write(folder, [record()]), test=True)[0]
    block = f"[DET]{objects.COUNTS_TEXT}"
    assert example.turns == [
        ("human", "<image>\nWhat is there? Please also point to every object you mention."),
        ("gpt", f"Sure, <det>Two animals</det> {block} and <det>a dog</det>{block}."),
    ]
    targets = example.targets["grounding_dino"]
    assert targets["labels"].tolist() == [0, 0, 1] and "masks" not in targets
    truth = objects_of(example, "grounding_dino")
    wanted = [objects.BOXES[name] for name in ("dog", "horse", "dog")]
    np.testing.assert_array_equal(truth.boxes, wanted)
    assert truth.labels.tolist() == ["Two animals", "Two animals", "a dog"]
    x0, y0, x1, y1 = wanted[0]
    np.testing.assert_allclose(
        targets["boxes"][0], [(x0 + x1) / 160, (y0 + y1) / 80, (x1 - x0) / 80, (y1 - y0) / 40], rtol=1e-5
    )


def test_rounds_and_requests(folder):
    texts = (
        "Hi.",
        "Hello.",
        "Who?",
        f"I see {ROI} and <p>a dog</p> {ROI}",
        "More?",
        f"It is <p>a dog</p> {ROI}",
    )
    options = objects.write(folder, [record(*texts, box_inds=(None, (0, 1), (1,)))])
    example = load(**options)[0]
    assert [text.count("<image>") for _, text in example.turns] == [1, 0, 0, 0, 0, 0]
    assert example.meta["classes"] == ["object", "a dog", "a dog (2)"]
    assert example.targets["grounding_dino"]["labels"].tolist() == [0, 1, 2]
    assert example.turns[3][1].startswith("I see [DET]")
    requests = {load(**options, seed=seed)[0].turns[2][1].removeprefix("Who? ") for seed in range(30)}
    assert requests == set(TEMPLATES["grounded_caption"])
    openings = {
        load(**objects.write(folder, [record()]), seed=s)[0].turns[1][1].split()[0] for s in range(20)
    }
    assert openings == {"Sure,", "Of", "Certainly,", "Yes,"}
    objects.same(load(**options, seed=3)[0], load(**options, seed=3)[0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(box_inds=((0, 1),)), r"record 5, turn 1, field 'box_inds': \[0, 1\] for 3 <ground_box>"),
        (record(box_inds=((0, 1, 2),)), "turn 1, field 'box_inds': .* of 2 boxes"),
        (record(box_inds=(None,)), "turn 1, field 'box_inds': the field is missing"),
        (record("a", "<roi></roi>", box_inds=((),)), "at least one in each <roi>"),
        (record(boxes=[[1, 2, 3]]), r"record 5, field 'boxes': box 0, \[1, 2, 3\], is not x, y"),
        (record(boxes=[[0, 0, 5, 5], [90, 0, 5, 5]]), "field 'boxes': box 1"),
        (record(file_name="b.png"), "b.png, record 5, field 'file_name': no such picture"),
        (record(height=41), r"record 5: the picture is \(40, 80\)"),
        (record(conversation="hello"), "record 5, field 'conversation': 'hello' is a str"),
        (record(conversation=[{"text": ""}]), "record 5, turn 0, field 'value': the field is missing"),
        (record(conversation=["hello"]), "record 5, turn 0: not an object"),
    ],
)
def test_bad_records(folder, bad, message):
    source = load(**objects.write(folder, [bad]))
    with pytest.raises(DataError, match=message) as found:
        source[0]
    assert found.value.remedy
