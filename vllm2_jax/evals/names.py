# SPDX-License-Identifier: Apache-2.0
"""Names of classes in answers: region recognition, and the overlap of words (semantic IoU)."""

import re

from vllm2_jax.evals.metric import Metric, Question

_DROPPED = re.compile(r"[.,'!?\"()*#:;]")
_BLANK = re.compile(r"[-/_]")


def recognition(name: str = "recognition") -> Metric:
    """Share of answers that are right but for case and a final full stop: names of regions, GQA."""

    def record(answer: str, asked: Question) -> bool:
        return _plain(answer) == _plain(asked.answers[0])

    return Metric(record, lambda records: {name: sum(records) / len(records)})


def semantic_iou(name: str = "semantic_iou") -> Metric:
    """Words shared over words of either, the mean over regions (Osprey's LVIS and PACO).

    Compared is what follows the last colon of the answer, without punctuation.
    """

    def record(answer: str, asked: Question) -> float:
        return word_iou(clean_name(answer.rpartition(":")[2]), clean_name(asked.answers[0]))

    return Metric(record, lambda records: {name: sum(records) / len(records)})


def clean_name(name: str) -> str:
    """A class name as prompts spell it: lower case, no punctuation, blanks for hyphens and the like."""
    return _BLANK.sub(" ", _DROPPED.sub("", name.lower())).strip()


def word_iou(a: str, b: str) -> float:
    """Words that both have over words that either has; 1 for two empty texts."""
    first, second = set(a.split()), set(b.split())
    return len(first & second) / len(first | second) if first or second else 1.0


def _plain(answer: str) -> str:
    return answer.strip().lower().rstrip(".")
