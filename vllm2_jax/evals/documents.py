# SPDX-License-Identifier: Apache-2.0
"""Answers read off documents and charts: ANLS (DocVQA, InfographicVQA) and relaxed accuracy (ChartQA)."""

from collections.abc import Callable, Sequence

from vllm2_jax.evals.metric import Metric, Question

_LEAST = 0.5  # a similarity below counts as 0
_MARGIN = 0.05  # relative error of a number that still counts


def anls(name: str = "anls") -> Metric:
    """Average normalised Levenshtein similarity to the nearest accepted answer, 0 to 1."""
    return _mean(name, lambda answer, asked: similarity(answer, asked.answers))


def relaxed(name: str = "relaxed") -> Metric:
    """Relaxed accuracy: numbers within 5 percent, other answers equal but for case."""
    return _mean(name, lambda answer, asked: float(any(relaxed_match(answer, t) for t in asked.answers)))


def similarity(answer: str, accepted: Sequence[str]) -> float:
    """1 - distance / length to the nearest of the accepted answers, 0 below one half.

    Blanks count once in the distance, but all of them in the length, as in the official script.
    """
    found = " ".join(answer.lower().split())
    best = 0.0
    for text in accepted:
        length = max(len(text), len(answer))
        distance = levenshtein(" ".join(text.lower().split()), found)
        best = max(best, 1 - distance / length if length else 1.0)
    return best if best >= _LEAST else 0.0


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of a character that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def relaxed_match(answer: str, truth: str) -> bool:
    """Whether an answer counts; the error is relative to the *answer*: the official call swaps them."""
    return relaxed_correct(answer.strip(), truth)


def relaxed_correct(reference: str, other: str) -> bool:
    """Numbers within 5 percent of the reference; equal but for case if either is no number or it is 0."""
    a, b = _number(reference), _number(other)
    if b is not None and a:
        return abs(b - a) / abs(a) <= _MARGIN
    return other.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _mean(name: str, value: Callable[[str, Question], float]) -> Metric:
    return Metric(value, lambda records: {name: sum(records) / len(records)})
