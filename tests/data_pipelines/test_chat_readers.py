# SPDX-License-Identifier: Apache-2.0
"""Readers of conversations and captions, on files written here."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS
from data_pipelines.errors import DataError
from data_pipelines.templates import TEMPLATES


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def write(folder, records) -> str:
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return str(path)


def chat(*texts) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_llava_with_and_without_picture(folder):
    file = write(
        folder,
        [
            {"id": "x7", "image": "a.png", "conversations": chat("<image>\nwhat?", "a", "where?", "b")},
            {"conversations": chat("hello", "hi")},
        ],
    )
    source = DATASETS["llava"](annotations=file, tile_size=8, max_tiles=4)
    assert len(source) == 2
    first, second = source[0], source[1]
    assert first.turns == [("human", "<image>\nwhat?"), ("gpt", "a"), ("human", "where?"), ("gpt", "b")]
    assert [tiles.shape for tiles in first.images] == [(4, 8, 8, 3)]  # 3 x 1 and the whole
    assert (first.source, first.file, first.record) == ("llava", file, "x7")
    assert first.meta["answers"] == ["a", "b"] and first.regions.shape == (0, 8, 8)
    assert second.images == [] and second.record == "1"


def test_llava_drops_later_image_marks(folder):
    file = write(folder, [{"image": "a.png", "conversations": chat("<image>\nx", "y", "<image>\nz", "w")}])
    turns = DATASETS["llava"](annotations=file, tile_size=8)[0].turns
    assert turns[2] == ("human", "z")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.png"}, "record 0, field 'conversations': the field is missing"),
        ({"image": 3, "conversations": chat("<image>", "a")}, "field 'image': 3 is a int"),
        ({"image": "gone.png", "conversations": chat("<image>", "a")}, "gone.png: no such picture"),
        ({"image": "a.png", "conversations": chat("what", "a")}, "has 0 <image> for 1 pictures"),
        ({"image": "a.png", "conversations": chat("<image><image>", "a")}, "has 2 <image> for 1 pictures"),
        ({"conversations": chat("<image>\nwhat", "a")}, "has 1 <image> for 0 pictures"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [{"from": "user", "value": "a"}]}, "turn 0, field 'from': unknown speaker 'user'"),
        ({"conversations": [{"from": "human"}]}, "turn 0, field 'value': the field is missing"),
    ],
)
def test_llava_bad_records(folder, record, message):
    source = DATASETS["llava"](annotations=write(folder, [record]), tile_size=8)
    with pytest.raises(DataError, match=message) as caught:
        source[0]
    assert caught.value.remedy


def test_captions(folder):
    file = write(folder, [{"id": 5, "image": "a.png", "caption": " A dog. "}] * 40)
    source = DATASETS["captions"](annotations=file, tile_size=8, image_mode="pad")
    example = source[0]
    assert example.turns[1] == ("gpt", "A dog.") and example.record == "5"
    assert [tiles.shape for tiles in example.images] == [(1, 8, 8, 3)]
    questions = [source[i].turns[0][1] for i in range(40)]
    assert {question.removeprefix("<image>\n") for question in questions} <= set(TEMPLATES["caption"])
    assert len(set(questions)) > 3  # drawn anew for each index
    again = DATASETS["captions"](annotations=file, tile_size=8, image_mode="pad")
    assert [again[i].turns[0][1] for i in range(40)] == questions  # and only from (seed, index)
    other = DATASETS["captions"](annotations=file, tile_size=8, image_mode="pad", seed=1)
    assert [other[i].turns[0][1] for i in range(40)] != questions
    tested = DATASETS["captions"](annotations=file, tile_size=8, image_mode="pad", test=True)
    assert tested[3].turns[0][1] == "<image>\n" + TEMPLATES["caption"][0]


def test_one_of_several_captions_is_drawn_for_each_record(folder):
    texts = ["one", " two ", "three"]
    options = {"annotations": write(folder, [{"image": "a.png", "caption": texts}] * 40), "tile_size": 8}
    source, again, other = (DATASETS["captions"](**options, seed=seed) for seed in (0, 0, 1))
    drawn, same, others = ([s[i].turns[1][1] for i in range(40)] for s in (source, again, other))
    assert set(drawn) == {"one", "two", "three"} and drawn == same != others
    assert source[0].meta["answers"] == texts
    questions = {text: {source[i].turns[0][1] for i in range(40) if drawn[i] == text} for text in set(drawn)}
    assert min(map(len, questions.values())) > 2  # question and caption are drawn apart


def test_captions_without_question(folder):
    file = write(folder, [{"img": "a.png", "texts": ["one", "two"]}])
    source = DATASETS["captions"](
        annotations=file, tile_size=8, ask=False, image_field="img", caption_field="texts", test=True
    )
    assert source[0].turns == [("human", "<image>"), ("gpt", "one")]
    assert source[0].meta["answers"] == ["one", "two"]


@pytest.mark.parametrize("caption", ["  ", [], ["a", 3]])
def test_empty_captions(folder, caption):
    source = DATASETS["captions"](
        annotations=write(folder, [{"image": "a.png", "caption": caption}]), tile_size=8
    )
    with pytest.raises(DataError, match="record 0, field 'caption': no caption"):
        source[0]
