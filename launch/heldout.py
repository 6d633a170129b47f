# SPDX-License-Identifier: Apache-2.0
"""What `config.eval.tasks` holds out: questions with known answers, pictures with known objects, and scores.

A task without a decoder asks every question of its examples; the model answers in words. A task with a
decoder gives the answer, whose links say what to look for or to paint; the decoder does it. `metrics` names
what is scored (keys of `vllm2_jax.evals.EVALS`).
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from data_pipelines.example import Example, no_regions
from launch.answer import Answer, AnswerConfig, Answerer
from launch.build import Config, Run
from launch.paintings import Painting, paint, read_commissions
from launch.perceive import Seen
from launch.rows import PROGRESS, read_ahead
from launch.sights import SHOWN, First, look, open_datasets, read_sights
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.evals import EVALS, MAPS, OBJECTS, PICTURES, WORDS
from vllm2_jax.evals.metric import Question
from vllm2_jax.model import VisionLLMv2


@dataclasses.dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
      task: key in `config.eval.tasks`.
      kind: what is asked for, such as "colour"; the task where the dataset does not say.
      example: ends with the question; earlier turns hold the true answers.
      truth: the true answer.
    """

    task: str
    kind: str
    example: Example
    truth: str

    @property
    def question(self) -> str:
        """The question, without the mark of its picture."""
        return self.example.turns[-1][1].replace("<image>", "").strip()

    @property
    def asked(self) -> Question:
        """The form that metrics take; `meta` may give several `answers`, `options` and a `group`."""
        meta = self.example.meta
        return Question(
            tuple(meta.get("accepted", ())) or (self.truth,),
            self.kind,
            meta.get("options", {}),
            str(meta.get("group", "")),
        )

    def without_pictures(self) -> "Case":
        """What is kept of the many."""
        bare = dataclasses.replace(
            self.example,
            images=[],
            regions=no_regions(),
            region_images=self.example.region_images[:0],
            targets={},
        )
        return dataclasses.replace(self, example=bare)


@dataclasses.dataclass(frozen=True)
class Cases:
    """All turns of all records of the tasks that are answered in words.

    Threads of every host read the records ahead, anew each time: the pictures of a whole benchmark would not
    fit into memory.

    Attributes:
      sets: task and records.
    """

    sets: Sequence[tuple[str, First]]

    def __bool__(self) -> bool:
        return any(len(source) for _, source in self.sets)

    def __iter__(self) -> Iterator[Case]:
        for task, source in self.sets:
            for number, example in enumerate(read_ahead(source.__getitem__, range(len(source)))):
                logging.log_every_n_seconds(
                    logging.INFO, "%s: %d of %d records", PROGRESS, task, number, len(source)
                )
                yield from turns_of(task, example)


@dataclasses.dataclass(frozen=True)
class Answered:
    """What a model said to a case, which has kept its pictures if a report shows it."""

    case: Case
    answer: Answer


@dataclasses.dataclass(frozen=True)
class Results:
    """What came out: named values, all answers, the first pictures of each task."""

    scores: dict[str, float]
    answers: list[Answered]
    seen: dict[str, list[Seen]]
    painted: dict[str, list[Painting]]


class Heldout:
    """Everything held out of a run, and the programs that answer it. Compiles each of them once.

    Attributes:
      metrics: of the tasks that are answered in words and name their own; the others share one exact match.
      cases: the questions, of both.
    """

    def __init__(self, config: Config, run: Run, count: int | None = None):
        """Takes `count` records of every dataset (default: `config.eval.examples`).

        Raises:
          ValueError: no records at all, or metrics that do not fit their task.
        """
        check_metrics(config)
        self.metrics = _metrics(config)
        self.cases = read_cases(config, run, count)
        self.answerer = make_answerer(config, run) if self.cases else None
        self.sights = read_sights(config, run, count)
        self.commissions = read_commissions(config, run, count)
        if not self.cases and not self.sights and not self.commissions:
            raise ValueError("nothing to evaluate: config.eval.tasks names no dataset with records")

    def __call__(self, model: VisionLLMv2) -> Results:
        """Asks a model everything; all processes get the same scores."""
        answers: list[Answered] = []
        scores: dict[str, float] = {}
        if self.answerer is not None:
            answers, scores = evaluate(self.answerer, model, self.cases, self.metrics)
        seen = {}
        for sight in self.sights:
            seen[sight.name], found = look(sight, model)
            scores |= found
        painted = {}
        for commission in self.commissions:
            painted[commission.name], found = paint(commission, model)
            scores |= found
        return Results(scores, answers, seen, painted)


def read_cases(config: Config, run: Run, count: int | None = None) -> Cases:
    """All turns of the first `count` records of every dataset of the tasks without a decoder."""
    opened = open_datasets(config, run, count)
    return Cases([(task, source) for task, _, entry, source in opened if not entry.get("decoder")])


def turns_of(task: str, example: Example) -> list[Case]:
    """One case for each answer of an example."""
    kinds: Sequence[str] = example.meta.get("kinds", ())
    answers = [i for i, (who, _) in enumerate(example.turns) if who == "gpt"]
    return [
        Case(
            task=task,
            kind=kinds[number] if number < len(kinds) else task,
            example=dataclasses.replace(example, turns=example.turns[:i]),
            truth=example.turns[i][1],
        )
        for number, i in enumerate(answers)
    ]


def make_answerer(config: Config, run: Run) -> Answerer:
    """Has room for the pictures and regions of every task that is answered in words."""
    tasks = [task for task in config.eval.tasks.to_dict().values() if not task.get("decoder")]
    return Answerer(
        run,
        AnswerConfig(
            rows=config.eval.rows,
            tiles=max((task.get("tiles", 0) for task in tasks), default=0),
            regions=max((task.get("regions", 0) for task in tasks), default=0),
            max_new=config.eval.max_new,
        ),
    )


def evaluate(
    answerer: Answerer,
    model: VisionLLMv2,
    cases: Cases,
    metrics: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Answered], dict[str, float]]:
    """The answers of a model and its scores.

    Args:
      answerer, model, cases: who is asked what.
      metrics: task -> keys of `EVALS`, whose values are then `<task>/...`; the other tasks share one exact
        match.
    """
    metrics = metrics or {}
    asked, kept = itertools.tee(cases)
    answers, shown = [], collections.Counter[str]()
    for case, answer in zip(kept, answerer.stream(model, (case.example for case in asked)), strict=True):
        shown[case.task] += 1
        answers.append(Answered(case if shown[case.task] <= SHOWN else case.without_pictures(), answer))
    scores = _words("exact_match", [one for one in answers if one.case.task not in metrics])
    for task, names in metrics.items():
        for name in names:
            found = _words(name, [one for one in answers if one.case.task == task])
            scores |= {f"{task}/{key}": value for key, value in found.items()}
    return answers, scores


def _words(name: str, answers: Sequence[Answered]) -> dict[str, float]:
    if not answers:
        return {}
    return EVALS[name]([one.answer.text for one in answers], [one.case.asked for one in answers])


def check_metrics(config: Config) -> None:
    """Raises ValueError for a task whose metrics are unknown, missing, or of the wrong kind."""
    for task, entry in config.eval.tasks.to_dict().items():
        names, known = entry.get("metrics", ()), OBJECTS | MAPS if entry.get("decoder") else WORDS
        known = PICTURES if entry.get("decoder") in PAINTERS else known
        unknown = [name for name in names if name not in known]
        if unknown or (entry.get("decoder") and not names):
            wrong = f"does not take the metrics {unknown}" if unknown else "needs `metrics`"
            raise ValueError(f"config.eval.tasks.{task} {wrong}; there are {', '.join(known)}")


def _metrics(config: Config) -> dict[str, tuple[str, ...]]:
    """Metrics of the tasks that are answered in words and name their own."""
    tasks = config.eval.tasks.to_dict().items()
    return {
        name: tuple(task["metrics"])
        for name, task in tasks
        if task.get("metrics") and not task.get("decoder")
    }


def hooks(config: Config, run: Run, rebuild: Callable[[Any], VisionLLMv2]) -> list[tuple[int, Callable]]:
    """The loop's evaluation: a few examples every `config.eval.every` steps; none if that is 0."""
    if not config.eval.every:
        return []
    heldout = Heldout(config, run, config.eval.quick)

    def hook(state: Any) -> Mapping[str, float]:
        return {f"eval/{name}": value for name, value in heldout(rebuild(state)).scores.items()}

    return [(config.eval.every, hook)]
