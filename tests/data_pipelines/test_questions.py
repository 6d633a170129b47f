# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that are answered in words, on files written here."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from configs.mixtures_questions import QUESTIONS_HELDOUT
from data_pipelines.collate import CollateSpec
from data_pipelines.datasets.questions import load
from data_pipelines.errors import DataError
from data_pipelines.mixture import open_source
from launch.build import fill_root
from launch.heldout import turns_of
from vllm2_jax.evals import WORDS

SIZE = 14


@pytest.fixture
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path, picture):
    for name in ("a.png", "art/1.png", "art/2.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(picture)
    return tmp_path


def write(folder, name: str, *lines) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def opened(folder, annotations: str, **options):
    options = {"image_root": str(folder / "pictures"), "prefix": "data/", "tile_size": SIZE} | options
    return load(annotations=annotations, **options)


def asked(example):
    """What metrics get of an example with one question."""
    (case,) = turns_of("task", example)
    return case.asked


def test_answers_of_annotators_lie_apart(folder):
    record = {"image": "data/a.png", "question": "What colour?", "question_id": 7}
    questions = write(folder, "q.jsonl", record, record | {"question_id": 8})
    said = [[{"answer": text} for text in texts] for texts in (("red", "red", "blue"), ("two",))]
    numbered = [{"question_id": 8, "answers": said[1]}, {"question_id": 7, "answers": said[0]}]
    answers = write(folder, "answers.json", {"annotations": numbered})
    source = opened(folder, questions, answers=answers, request="In one word.")
    assert len(source) == 2 and source[0].record == "7"
    assert source[0].turns == [("human", "<image>\nWhat colour? In one word."), ("gpt", "red")]
    assert source[0].images[0].shape[1:] == (SIZE, SIZE, 3)
    assert asked(source[0]).answers == ("red", "red", "blue") and asked(source[0]).kind == ""
    assert asked(source[1]).answers == ("two",)
    # DocVQA's form.
    pages = [{"questionId": number, "answers": ["15", "fifteen"]} for number in (7, 8)]
    source = opened(folder, questions, answers=write(folder, "doc.json", {"data": pages}))
    assert source[1].turns[0] == ("human", "<image>\nWhat colour?")
    assert asked(source[1]).answers == ("15", "fifteen")


def test_options_and_hints(folder):
    record = {"image": "a.png", "question": "Which?", "hint": "Look.", "choices": ["x", "y"], "answer": 1}
    example = opened(folder, write(folder, "q.json", [record]), request="The letter.")[0]
    assert example.turns == [("human", "<image>\nLook.\nWhich?\nA. x\nB. y\nThe letter."), ("gpt", "B")]
    assert asked(example).options == {"A": "x", "B": "y"} and asked(example).answers == ("B",)
    # SEED: the text is the whole prompt, the answer a letter already.
    record = {"image": "a.png", "text": "Which?\nA. x", "answer": "A", "category": "art", "question_id": "s1"}
    example = opened(folder, write(folder, "q.json", [record]))[0]
    assert example.turns == [("human", "<image>\nWhich?\nA. x"), ("gpt", "A")]
    assert asked(example).kind == "art" and asked(example).options == {}


def test_labels_follow_the_questions_of_their_kind(folder):
    record = {"image": "a.png", "text": "Is there a dog?"}
    questions = write(
        folder, "q.jsonl", *(record | {"category": kind} for kind in ("random", "hard", "random"))
    )
    write(folder, "labels/coco_pope_hard.json", {"label": "yes"})
    write(folder, "labels/coco_pope_random.json", {"label": "no", "image": "a.png"}, {"label": "yes"})
    source = opened(folder, questions, answers=str(folder / "labels"), request="")
    assert [asked(example).answers for example in source] == [("no",), ("yes",), ("yes",)]
    assert [asked(example).kind for example in source] == ["random", "hard", "random"]
    assert source[0].turns[0][1] == "<image>\nIs there a dog? "  # with the blank of the official prompt
    write(folder, "labels/coco_pope_random.json", {"label": "no", "image": "b.png"})
    with pytest.raises(DataError, match=r"coco_pope_random.*line 1.*b\.png.*a\.png") as error:
        opened(folder, questions, answers=str(folder / "labels"))
    assert error.value.remedy
    write(folder, "labels/coco_pope_random.json", {"label": "no"})
    with pytest.raises(DataError, match="fewer labels"):
        opened(folder, questions, answers=str(folder / "labels"))


def test_mmbench_shows_options_turned_round(folder, picture):
    head = "index\tquestion\thint\tA\tB\tC\tanswer\tcategory\timage"
    coded = base64.b64encode(picture).decode()
    rows = (
        f"{number}\tWhich?\t\tx\ty\t\t{answer}\tlogic\t{coded}"
        for number, answer in ((5, "A"), (1000005, "B"))
    )
    source = opened(folder, write(folder, "q.tsv", head, *rows), request="The letter.")
    assert source[0].turns == [("human", "<image>\nWhich?\nA. x\nB. y\nThe letter."), ("gpt", "A")]
    assert [asked(example).group for example in source] == ["5", "5"]
    assert asked(source[1]).answers == ("B",) and asked(source[1]).kind == "logic"
    assert source[1].images[0].shape[1:] == (SIZE, SIZE, 3)
    with pytest.raises(DataError, match="no columns answer"):
        opened(folder, write(folder, "q.tsv", head.replace("answer", "reply")))
    for row in ("five\tWhich?\t\tx\ty\t\tA", "5\tWhich?\t\tx\ty\t\tC", "5\tWhich?\t\tx\ty\t\t", "6"):
        with pytest.raises(DataError, match=r"q\.tsv.*row 1.*letter of an option"):
            opened(folder, write(folder, "q.tsv", head, f"{row}\tlogic\t{coded}"))
    with pytest.raises(DataError, match="leave out answers=x"):
        opened(folder, write(folder, "q.tsv", head), answers="x")
    broken = opened(folder, write(folder, "q.tsv", head, "5\tWhich?\t\tx\ty\t\tA\tlogic\t%%%"))
    with pytest.raises(DataError, match="not base64"):
        broken[0]


def test_mme_is_a_folder_of_tasks(folder):
    write(folder, "tasks/art.txt", "1.png\tIs it old?\tYes", "", "1.png\tIs it new?\tNo", "2.png\tOld?\tNo")
    source = opened(folder, str(folder / "tasks"), request="In one word.")
    assert source[1].turns == [("human", "<image>\nIs it new? In one word."), ("gpt", "No")]
    assert [(asked(e).kind, asked(e).group) for e in source] == [("art", "1.png")] * 2 + [("art", "2.png")]
    write(folder, "tasks/art.txt", "1.png\tIs it old?")
    with pytest.raises(DataError, match=r"art\.txt.*line 1.*2 fields"):
        opened(folder, str(folder / "tasks"))


GOOD = {"image": "a.png", "question": "Which?", "question_id": 7, "answer": "x"}


@pytest.mark.parametrize(
    "record, message",
    [
        ({"image": None}, "image"),
        ({"question": None}, "text"),
        ({"answer": None}, "answer"),
        ({"answer": {}}, "answer.*dict"),
        ({"answer": []}, "no answer"),
        ({"choices": ["x", "y"], "answer": 2}, "option 2 of 2"),
        ({"choices": list("abcdef")}, "6 choices"),
    ],
)
def test_records_that_are_wrong(folder, record, message):
    wrong = {key: value for key, value in (GOOD | record).items() if value is not None}
    with pytest.raises(DataError, match=rf"q\.jsonl.*1.*{message}"):
        opened(folder, write(folder, "q.jsonl", GOOD, wrong))


def test_answers_that_are_missing(folder):
    questions = write(folder, "q.jsonl", GOOD, GOOD | {"question_id": 8})
    for content, message in (
        (
            {"annotations": [{"question_id": 7, "answers": ["x"]}]},
            "no answers to 1 of 2 .* as 8",
        ),
        ({"questions": []}, "neither annotations nor data"),
        ({"data": ["7"]}, "neither annotations nor data"),
        ({"annotations": [{"question_id": 7}]}, "answers"),
    ):
        with pytest.raises(DataError, match=rf"answers\.json.*{message}"):
            opened(folder, questions, answers=write(folder, "answers.json", content))
    with pytest.raises(DataError, match=r"b\.png"):
        opened(folder, write(folder, "q.jsonl", GOOD | {"image": "b.png"}))[0]


@pytest.mark.parametrize("name", QUESTIONS_HELDOUT)
def test_published_benchmarks_can_be_opened(name, tmp_path):
    entry = fill_root(QUESTIONS_HELDOUT, str(tmp_path))[name]
    assert entry["metrics"] and all(metric in WORDS for metric in entry["metrics"])
    (options,) = entry["datasets"].values()
    with pytest.raises(DataError, match=str(tmp_path)):  # its options are right, its files are not here
        open_source("questions", options, spec=CollateSpec(64, SIZE, 1), seed=0)
