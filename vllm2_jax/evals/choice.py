# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: ScienceQA, MMBench, SEED, VCR."""

from collections.abc import Mapping, Sequence

from vllm2_jax.evals.metric import Metric, Question


def choice(name: str = "choice") -> Metric:
    """Share of right letters, overall and by kind; `Question.answers` holds the letter."""

    def record(answer: str, asked: Question) -> tuple[str, bool]:
        return asked.kind, parse_choice(answer, asked.options) == asked.answers[0]

    return Metric(record, lambda records: _shares(name, records))


def circular(name: str = "circular") -> Metric:
    """MMBench: share of questions answered right however their options are turned round, overall and by kind.

    `Question.group` is what the turns of a question share.
    """

    def record(answer: str, asked: Question) -> tuple[str, str, bool]:
        return asked.kind, asked.group, parse_choice(answer, asked.options) == asked.answers[0]

    def summarise(records: Sequence[tuple[str, str, bool]]) -> dict[str, float]:
        turns: dict[str, list[bool]] = {}
        for _, group, right in records:
            turns.setdefault(group, []).append(right)
        kinds = {group: kind for kind, group, _ in records}
        return _shares(name, [(kinds[group], all(found)) for group, found in turns.items()])

    return Metric(record, summarise)


def vcr(name: str = "vcr") -> Metric:
    """VCR: share of right answers (`qa`, Q->A in the paper), of reasons (`qar`, QA->R), of pairs of both.

    `Question.kind` is "qa" or "qar", `Question.group` what an answer and its reason share. The first
    character counts. The official code pairs lists that each process wrote, which can shift.
    """

    def record(answer: str, asked: Question) -> tuple[str, str, bool]:
        if asked.kind not in ("qa", "qar"):
            raise ValueError(f"{name}: {asked.kind!r} is neither qa nor qar; its records need a category")
        return asked.kind, asked.group, parse_choice(answer, {}) == asked.answers[0]

    def summarise(records: Sequence[tuple[str, str, bool]]) -> dict[str, float]:
        kinds: dict[str, dict[str, bool]] = {"qa": {}, "qar": {}}
        for kind, group, right in records:
            kinds[kind][group] = right
        answers, reasons = kinds.values()
        pairs = {group: answers[group] and reasons[group] for group in answers.keys() & reasons.keys()}
        found = {"qa": answers, "qar": reasons, "both": pairs}
        return {f"{name}/{kind}": sum(hits.values()) / len(hits) for kind, hits in found.items() if hits}

    return Metric(record, summarise)


def _shares(name: str, records: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Share of right ones of all, and of each kind that has a name."""
    kinds: dict[str, list[bool]] = {}
    for kind, right in records:
        kinds.setdefault(kind, []).append(right)
    scores = {f"{name}/{kind}": sum(hits) / len(hits) for kind, hits in sorted(kinds.items()) if kind}
    return {name: sum(right for _, right in records) / len(records), **scores}


def parse_choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter an answer means: its first character, or the option whose text it contains.

    What is neither comes back as it is, and is wrong. With no options the first character counts (SEED).
    """
    answer = answer.strip()
    if not options:
        return answer[:1]
    if len(answer) == 1 or answer[:1] in options:
        return answer[:1]
    return next((letter for letter, text in options.items() if text in answer), answer)
