# SPDX-License-Identifier: Apache-2.0
"""Questions answered with yes or no: POPE and MME."""

import re
from collections.abc import Sequence

import numpy as np

from vllm2_jax.evals.metric import Metric, Question

_HAN = re.compile("[\u4e00-\u9fa5]")
_COGNITION = frozenset(
    {"code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"}
)
_MME_WORDS = (("\n", ""), ("不是", "No"), ("是", "Yes"), ("否", "No"))


def pope(name: str = "pope") -> Metric:
    """POPE: F1 of "yes", the mean over the kinds of question (adversarial, popular, random) and of each kind.

    Beside it accuracy, precision, recall and the share of "yes" over all questions.
    """

    def record(answer: str, asked: Question) -> tuple[str, bool, bool]:
        return asked.kind, parse_pope(answer) == "yes", asked.answers[0] == "yes"

    def summarise(records: Sequence[tuple[str, bool, bool]]) -> dict[str, float]:
        kinds = sorted({kind for kind, _, _ in records})
        f1 = {kind: confusion([r[1:] for r in records if r[0] == kind])["F1"] for kind in kinds}
        found = confusion([r[1:] for r in records]) | {"F1": sum(f1.values()) / len(f1)}
        scores = {f"{name}/{key}": value for key, value in found.items()}
        return scores | {f"{name}/F1/{kind}": value for kind, value in f1.items() if kind}

    return Metric(record, summarise)


def parse_pope(answer: str) -> str:
    """ "no" if the first sentence has the word No, no or not; everything else is "yes", even NO."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def confusion(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and share of positives from (predicted, true); 0 where undefined."""
    predicted, true = np.array(pairs, bool).reshape(-1, 2).T
    hits = int((predicted & true).sum())
    said, there = int(predicted.sum()), int(true.sum())
    precision, recall = hits / max(said, 1), hits / max(there, 1)
    return {
        "accuracy": float((predicted == true).mean()),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes": said / len(pairs),
    }


def mme(name: str = "mme") -> Metric:
    """MME: for each task (`Question.kind`) 100 * (accuracy + share of pictures with both answers right).

    `Question.group` is the picture. Perception adds up its 10 tasks (0 to 2000), cognition its 4 (0 to 800).
    """

    def record(answer: str, asked: Question) -> tuple[str, str, bool]:
        return asked.kind, asked.group, parse_mme(clean_mme(answer)) == asked.answers[0].lower()

    def summarise(records: Sequence[tuple[str, str, bool]]) -> dict[str, float]:
        scores = {}
        for kind in sorted({kind for kind, _, _ in records}):
            pictures: dict[str, list[bool]] = {}
            for _, group, right in (r for r in records if r[0] == kind):
                pictures.setdefault(group, []).append(right)
            answers = [right for found in pictures.values() for right in found]
            both = sum(all(found) for found in pictures.values()) / len(pictures)
            scores[f"{name}/{kind}"] = 100 * (sum(answers) / len(answers) + both)
        thought = sum(value for key, value in scores.items() if key.removeprefix(f"{name}/") in _COGNITION)
        sums = {f"{name}/perception": sum(scores.values()) - thought, f"{name}/cognition": thought}
        return {name: sum(scores.values()), **sums, **scores}

    return Metric(record, summarise)


def clean_mme(answer: str) -> str:
    """Lower case, Chinese yes and no and true and false in English, other Chinese characters gone."""
    for word, instead in _MME_WORDS:
        answer = answer.replace(word, instead)
    return _HAN.sub("", answer.lower().replace("true", "yes").replace("false", "no"))


def parse_mme(answer: str) -> str:
    """ "yes", "no" or "other", by the first four characters ("none" is a no)."""
    return next((word for word in ("yes", "no") if word in answer[:4]), "other")
