# SPDX-License-Identifier: Apache-2.0
"""Which classes a question asks for, and lists of names."""

import json

import numpy as np
import pytest

from data_pipelines.class_lists import choose_classes, read_names
from data_pipelines.errors import DataError


def draws(present, count=10, most=None, n=200):
    return [choose_classes(count, present, np.random.default_rng(s), most=most) for s in range(n)]


def test_all_or_what_is_there_with_some_more():
    found = draws([2, 7, 2])
    assert all({2, 7} <= set(asked) and len(set(asked)) == len(asked) for asked in found)
    assert 0.4 < np.mean([len(asked) == 10 for asked in found]) < 0.8  # also when all others are drawn
    assert {len(asked) for asked in found} == set(range(2, 11))
    assert len({tuple(asked) for asked in found if len(asked) == 10}) > 50  # shuffled
    assert {asked[0] for asked in found if len(asked) < 10} == set(range(10))  # these too
    assert draws([2, 7]) == found


def test_something_is_asked_of_an_empty_picture():
    assert min(len(asked) for asked in draws([])) == 1


def test_at_most():
    assert all(len(asked) <= 3 and {2, 7} <= set(asked) for asked in draws([2, 7], most=3))
    crowded = draws([0, 1, 2, 3], most=2)
    assert all(len(asked) == 2 and set(asked) <= {0, 1, 2, 3} for asked in crowded)
    assert len({frozenset(asked) for asked in crowded}) == 6


def test_only_what_is_known_to_be_absent():
    rngs = [np.random.default_rng(seed) for seed in range(100)]
    found = [choose_classes(10, [2, 7], rng, absent=[1, 2, 4]) for rng in rngs]
    assert {frozenset(asked) for asked in found} == {
        frozenset({2, 7, *more}) for more in ((1, 4), (1,), (4,), ())
    }
    assert choose_classes(10, [], rngs[0], absent=[]) == []


def test_tests_ask_for_all_in_order():
    assert choose_classes(4, [2], None) == [0, 1, 2, 3]


def test_names(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["wall", "bed "]))
    (tmp_path / "a.txt").write_text("wall\n\nbed\n")
    assert read_names(tmp_path / "a.json") == ("wall", "bed ")
    assert read_names(tmp_path / "a.txt") == ("wall", "bed")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[", "a.json: not JSON"),
        ("a.json", "{}", "not a list of names"),
        ("a.txt", "", "not a list of names"),
        ("a.json", '["a", 3]', "record 1: 3 is empty, no text"),
        ("a.json", '["a", "a"]', "record 1: 'a' is empty, no text, or listed before.*Remedy"),
    ],
)
def test_bad_names(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_names(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_names(tmp_path / "b.json")
