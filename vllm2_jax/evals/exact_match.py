# SPDX-License-Identifier: Apache-2.0
"""Exact match of short answers, overall and by kind of question."""

from collections.abc import Iterable

from vllm2_jax.evals.metric import Metric, Question


def exact_match(answers: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """Share of answers that equal the truth but for case and outer blanks.

    Args:
      answers: (kind of question, answer, truth).

    Returns:
      `exact_match` over all, `exact_match/<kind>` for each kind, and `count`, the number of answers.

    Raises:
      ValueError: no answers at all.
    """
    hits: dict[str, list[bool]] = {}
    for kind, answer, truth in answers:
        hits.setdefault(kind, []).append(matches(answer, truth))
    if not hits:
        raise ValueError("exact match of no answers; give the evaluation some examples")
    every = [hit for found in hits.values() for hit in found]
    scores = {f"exact_match/{kind}": sum(found) / len(found) for kind, found in sorted(hits.items())}
    return {"exact_match": sum(every) / len(every), **scores, "count": len(every)}


def matches(answer: str, truth: str) -> bool:
    """Equal but for case and outer blanks."""
    return answer.strip().casefold() == truth.strip().casefold()


def _record(answer: str, asked: Question) -> tuple[str, str, str]:
    """Beside the truth that the answer matches, if there are several."""
    return asked.kind, answer, next((t for t in asked.answers if matches(answer, t)), asked.answers[0])


METRIC = Metric(_record, exact_match)
