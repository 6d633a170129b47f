# SPDX-License-Identifier: Apache-2.0
"""Annotation files and question templates."""

import json

import pytest

from data_pipelines.errors import DataError
from data_pipelines.records import need, read_records
from data_pipelines.templates import (
    TEMPLATES,
    as_sentence,
    clean_name,
    clean_phrase,
    load_templates,
    pick,
)


def test_json_and_json_lines(tmp_path):
    records = [{"a": "é\u2028x"}, {"a": 2}]
    (tmp_path / "x.json").write_text(json.dumps(records))
    # U+2028 is no line end for JSON, though Python's splitlines takes it for one.
    lines = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    assert read_records(tmp_path / "x.json") == read_records(tmp_path / "x.jsonl") == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[{]", "x.json: not JSON"),
        ("x.jsonl", '{"a": 1}\n{"a"', "x.jsonl, record line 2: not JSON"),
        ("x.json", '{"a": 1}', "not a list of objects"),
        ("x.json", "[1]", "not a list of objects"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / name)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_files_in_another_encoding(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match=f"{name}: not UTF-8 .*Remedy"):
        read_records(tmp_path / name)


@pytest.mark.parametrize("name", ["gone.json", "gone.jsonl"])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read_records(tmp_path / name)


def test_need_names_file_record_and_field():
    with pytest.raises(
        DataError, match=r"x.json, record 7, field 'image': the field is missing; there are a, b"
    ):
        need({"b": 1, "a": 2}, "image", str, file="x.json", index=7)
    with pytest.raises(DataError, match=r"field 'a': 2 is a int. Remedy: it has to be str or list"):
        need({"a": 2}, "a", (str, list), file="x.json", index=7)
    with pytest.raises(DataError, match="True is a bool"):
        need({"a": True}, "a", int, file="x.json", index=7)


def test_templates_of_a_user(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"region_caption": ["What is {region}?"]}))
    assert load_templates("region_caption", path) == ("What is {region}?",)
    assert load_templates("region_caption") == TEMPLATES["region_caption"]
    with pytest.raises(DataError, match="field 'caption': not a list of texts"):
        load_templates("caption", path)
    path.write_text(json.dumps({"region_caption": ["What is {region}?", "What is <region>?"]}))
    with pytest.raises(DataError, match=r"record 1.*lacks the slot \{region\}"):
        load_templates("region_caption", path)


def test_pick_is_the_first_in_tests():
    assert pick(("a", "b"), None) == "a"


def test_phrases_and_names():
    assert clean_phrase(" The man's T-shirt, (red)!") == "the mans t shirt red"
    assert (clean_phrase("Bow_(weapon)"), clean_name("Bow_(weapon)")) == ("bow_weapon", "bow weapon")


def test_sentence():
    assert as_sentence(" a RED car. ") == "A red car." and as_sentence("dog") == "Dog."
