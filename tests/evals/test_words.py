# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers in words; the official numbers are in tests/parity/metrics.py."""

import jax
import pytest

from vllm2_jax.evals import EVALS, WORDS, documents, vqa
from vllm2_jax.evals.metric import Question, gather

RIGHT = {
    "exact_match": ("Red.", Question(("red.",), "colour")),
    "vqa": ("2", Question(("2",) * 10, "number")),
    "anls": ("total 15", Question(("Total 15", "15"))),
    "relaxed": ("100", Question(("104",))),
    "accuracy": ("No", Question(("no.",))),
    "circular": ("B", Question(("B",), "science", {"A": "red", "B": "blue"}, "7")),
    "choice": ("B. blue", Question(("B",), "science", {"A": "red", "B": "blue"})),
    "vcr": ("B.", Question(("B",), "qa", group="0")),
    "pope": ("Yes.", Question(("yes",), "random")),
    "mme": ("Yes", Question(("Yes",), "count", group="1.jpg")),
    "recognition": ("Dog.", Question(("dog",))),
    "semantic_iou": ("The class: traffic light.", Question(("traffic-light",))),
}
FULL = {"mme": 200.0, "mme/cognition": 0.0, "pope/yes": 1.0, "count": 1}


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


def test_options_turned_round():
    options = {"A": "red", "B": "blue"}
    asked = [
        Question((letter,), kind, options, group)
        for letter, kind, group in (("B", "art", "1"), ("A", "art", "1"), ("A", "", "2"), ("B", "art", "3"))
    ]
    scores = EVALS["circular"](["B", "B", "It is red.", "blue"], asked)
    assert scores == {"circular": pytest.approx(2 / 3), "circular/art": 0.5}  # not the first


def test_vcr_counts_answers_reasons_and_both():
    asked = [
        Question(("A",), kind, group=group)
        for group, kind in (("0", "qa"), ("0", "qar"), ("1", "qa"), ("1", "qar"), ("2", "qa"))
    ]
    scores = EVALS["vcr"](["A", "A.", "A", "B", "C"], asked)
    assert scores == {"vcr/qa": pytest.approx(2 / 3), "vcr/qar": 0.5, "vcr/both": 0.5}
    with pytest.raises(ValueError, match="'chat' is neither qa nor qar"):
        EVALS["vcr"](["A"], [Question(("A",), "chat")])


def test_pope_scores_clear_and_unclear_answers():
    said = ["yes"] * 5 + ["no"] * 5
    true = ["yes"] * 3 + ["no"] * 2 + ["yes"] + ["no"] * 4
    scores = EVALS["pope"](said, [Question((label,)) for label in true])
    expected = {"precision": 3 / 5, "recall": 3 / 4, "F1": 2 / 3, "accuracy": 0.7, "yes": 0.5}
    assert scores == pytest.approx({f"pope/{key}": value for key, value in expected.items()})


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
        Question((label,), "OCR", group=picture)
        for picture, label in (("1", "Yes"), ("1", "No"), ("2", "Yes"), ("2", "No"))
    ]
    scores = EVALS["mme"](["Yes", "No.", "Yes", "Yes"], asked)
    # 3 of 4 answers, 1 of 2 pictures
    assert scores == {"mme": 125.0, "mme/perception": 125.0, "mme/cognition": 0.0, "mme/OCR": 125.0}
    asked.append(Question(("No",), "code_reasoning", group="1"))
    scores = EVALS["mme"](["Yes", "No.", "Yes", "Yes", "no"], asked)
    assert (scores["mme/perception"], scores["mme/cognition"], scores["mme"]) == (125.0, 200.0, 325.0)


@pytest.mark.parametrize("same, accuracy", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators(same, accuracy):
    """Each is left out in turn; three of the nine others make an answer fully right."""
    said = ("red",) * same + ("dark blue",) * (10 - same)
    assert EVALS["vqa"](["Red."], [Question(said)]) == {"vqa": pytest.approx(accuracy)}


def test_annotators_who_agree_keep_their_punctuation():
    assert vqa.accuracy("t-shirt", ["t-shirt"] * 10) == 0.0  # the answer has lost its own
    assert vqa.accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1.0


def test_vqa_is_the_mean_of_all_and_of_each_kind():
    asked = [Question(("red",) * 2 + ("blue",) * 8, "colour"), Question(("2",) * 10, "number")]
    scores = EVALS["vqa"](["red", "2", "green"], [*asked, asked[0]])
    assert scores == pytest.approx({"vqa": 1.6 / 3, "vqa/colour": 0.3, "vqa/number": 1.0})


@pytest.mark.parametrize(
    "answer, accepted, similarity",
    [
        ("kitten", ["sitting"], 4 / 7),
        ("sitting", ["kitten"], 4 / 7),
        ("Sitting", ["bird", "kitten", "sit"], 4 / 7),
        ("cats!!", ["cat"], 0.5),  # one half still counts
        ("abcuvwxyz", ["abcde12345"], 0.0),
        ("abxyz", ["abcde"], 0.0),  # 0.4
        ("a  b", ["a b"], 1.0),
        ("a  c", ["a b"], 0.75),  # blanks count in the length
    ],
)
def test_similarity_to_the_nearest_accepted_answer(answer, accepted, similarity):
    assert documents.similarity(answer, accepted) == pytest.approx(similarity)


def test_anls_is_a_mean():
    asked = [Question(("sitting",)), Question(("abcde",)), Question(("15",))]
    assert EVALS["anls"](["kitten", "abxyz", "15"], asked) == {"anls": pytest.approx((4 / 7 + 0 + 1) / 3)}


@pytest.mark.parametrize(
    "answer, accepted, right",
    [
        ("100", ("105",), True),  # 5 percent of the answer, and still right
        ("100", ("95.1",), True),
        ("100", ("105.1",), False),
        ("95", ("100",), False),  # 5 percent of the truth, 5.3 of the answer
        ("105", ("100",), True),
        ("5%", ("0.051",), True),
        ("0", ("0.01",), False),
        ("Blue ", ("red", "blue"), True),
        ("100", ("blue", "1"), False),
    ],
)
def test_numbers_within_five_percent(answer, accepted, right):
    assert EVALS["relaxed"]([answer], [Question(accepted)]) == {"relaxed": float(right)}


def test_half_right():
    asked = [Question(("red",), "colour"), Question(("blue",), "colour"), Question(("2",), "number")]
    scores = EVALS["exact_match"](["RED\n", "green", "2"], asked)
    assert scores.pop("count") == 3
    assert scores == pytest.approx(
        {"exact_match": 2 / 3, "exact_match/colour": 0.5, "exact_match/number": 1.0}
    )
    assert EVALS["recognition"](["Dog", "cat."], asked[:2]) == {"recognition": 0.0}
    several = EVALS["exact_match"](["blue", "black"], [Question(("red", "Blue"), "colour")] * 2)
    assert several == {"exact_match": 0.5, "exact_match/colour": 0.5, "count": 2}
    # One word of two, and none; what stands before the last colon does not count.
    names = [Question(("traffic-light",)), Question(("small red dog",))]
    scores = EVALS["semantic_iou"](["It is: this: light.", "Red: cat"], names)
    assert scores == {"semantic_iou": 0.25}


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
