# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers in words; the official numbers are in tests/parity/metrics.py."""

import jax
import pytest

from vllm2_jax.evals import EVALS, WORDS, vqa
from vllm2_jax.evals.metric import Question, gather

RIGHT = {
    "exact_match": ("Red.", Question(("red.",), "colour")),
    "vqa": ("2", Question(("2",) * 10, "number")),
    "anls": ("total 15", Question(("Total 15", "15"))),
    "relaxed": ("100", Question(("104",))),
    "choice": ("B. blue", Question(("B",), "science", {"A": "red", "B": "blue"})),
    "pope": ("Yes.", Question(("yes",), "random")),
    "mme": ("Yes", Question(("Yes",), "count", group="1.jpg")),
    "recognition": ("Dog.", Question(("dog",))),
    "semantic_iou": ("The class: traffic light.", Question(("traffic-light",))),
}
FULL = {"mme": 200.0, "pope/yes": 1.0, "count": 1}


@pytest.mark.parametrize("name", WORDS)
def test_right_and_wrong_answers(name):
    answer, asked = RIGHT[name]
    scores = WORDS[name]([answer], [asked])
    assert all(value == FULL.get(key, FULL.get(name, 1.0)) for key, value in scores.items())
    for wrong in ("zzz no zzz", ""):
        first = next(iter(WORDS[name]([wrong], [asked]).values()))
        # POPE takes whatever is no clear no for a yes.
        assert first == (1.0 if name == "pope" and not wrong else 0.0)
    with pytest.raises(ValueError, match=r"nothing to score|no answers"):
        WORDS[name].score([])


def test_scores_are_kept_apart_by_kind():
    asked = [Question(("B",), kind, {"A": "x", "B": "y"}) for kind in ("science", "science", "art")]
    scores = EVALS["choice"](["B", "A", "B"], asked)
    assert scores == {"choice": pytest.approx(2 / 3), "choice/art": 1.0, "choice/science": 0.5}


def test_pope_is_the_mean_of_its_kinds():
    asked = [
        Question((label,), kind) for kind, label in (("a", "yes"), ("a", "no"), ("b", "yes"), ("b", "yes"))
    ]
    scores = EVALS["pope"](["yes", "yes", "yes", "no"], asked)
    assert scores["pope/F1/a"] == pytest.approx(2 / 3) and scores["pope/F1/b"] == pytest.approx(2 / 3)
    assert scores["pope/F1"] == pytest.approx(2 / 3)
    assert scores["pope/accuracy"] == 0.5 and scores["pope/yes"] == 0.75


def test_mme_needs_both_answers_of_a_picture():
    asked = [
        Question((label,), "ocr", group=picture)
        for picture, label in (("1", "Yes"), ("1", "No"), ("2", "Yes"), ("2", "No"))
    ]
    scores = EVALS["mme"](["Yes", "No.", "Yes", "Yes"], asked)
    assert scores == {"mme": 125.0, "mme/ocr": 125.0}  # 3 of 4 answers, 1 of 2 pictures


def test_apostrophes_come_back():
    assert (
        vqa.normalise_words("dont yall couldntve couldnt've shes well")
        == "don't y'all couldntve couldn't've shes well"
    )


def test_seed_takes_the_first_character():
    assert EVALS["choice"](["C) a dog"], [Question(("C",))]) == {"choice": 1.0}


def test_gather_on_one_process_keeps_the_order():
    assert jax.process_count() == 1
    assert gather({3: "c", 1: "a", 2: "b"}) == ["a", "b", "c"]
