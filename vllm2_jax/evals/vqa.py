# SPDX-License-Identifier: Apache-2.0
"""VQA accuracy: VQAv2, OKVQA, TextVQA, VizWiz.

Answers are normalised as in the benchmark's own script, whose oddities published scores share: a full stop
goes wherever no digit follows, and at most 32 of them.
"""

import re
from collections.abc import Sequence

from vllm2_jax.evals.metric import Metric

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32  # the script passes a flag where the number of replacements stands
_GROUPED = re.compile(r"\d,\d")  # 1,000
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")

# Words that often lose one of their apostrophes. Others ("we'll", "she'd") collide with words of their own.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've
    you'll you're you've
""".split()
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _APOSTROPHES
    for at in [mark.start() for mark in re.finditer("'", word)]
} | {"somebody'd": "somebodyd"}  # the wrong way round in the script


def vqa(name: str = "vqa") -> Metric:
    """Accuracy, 0 to 1: overall and by kind of question.

    `Question.answers` are those of the annotators, ten as a rule.
    """

    def summarise(records: Sequence[tuple[str, float]]) -> dict[str, float]:
        kinds: dict[str, list[float]] = {}
        for kind, value in records:
            kinds.setdefault(kind, []).append(value)
        scores = {f"{name}/{kind}": sum(v) / len(v) for kind, v in sorted(kinds.items()) if kind}
        return {name: sum(value for _, value in records) / len(records), **scores}

    return Metric(lambda answer, asked: (asked.kind, accuracy(answer, asked.answers)), summarise)


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Mean over annotators of min(1, others who said the same / 3).

    The annotators' words lose their punctuation only, and only where they differ among themselves.
    """
    answer = normalise_words(normalise_punctuation(_one_line(answer)))
    said = [_one_line(text) for text in annotators]
    if len(set(said)) > 1:
        said = [normalise_punctuation(text) for text in said]
    same = [text == answer for text in said]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def normalise_punctuation(text: str) -> str:
    """Marks beside a blank vanish, others become one; all vanish where a number has a comma."""
    vanish = _GROUPED.search(text) is not None
    made = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if beside or vanish else " ")
    return _STOP.sub("", made, count=_STOPS)


def normalise_words(text: str) -> str:
    """Lower case, numbers as digits, no articles, apostrophes put back."""
    words = [_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
