# SPDX-License-Identifier: Apache-2.0
"""Questions with known answers from the datasets of `config.eval.tasks`, and the score of a model on them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.example import Example
from data_pipelines.mixture import open_source
from launch.answer import Answer, AnswerConfig, Answerer
from launch.build import Config, Run, fill_root
from vllm2_jax.evals import EVALS
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


def read_cases(config: Config, run: Run, count: int | None = None) -> list[Case]:
    """All turns of the first `count` records (default: `config.eval.examples`) of every dataset."""
    count = config.eval.examples if count is None else count
    cases = []
    for task, entry in fill_root(config.eval.tasks.to_dict(), config.data.root).items():
        for name, options in entry["datasets"].items():
            source = open_source(name, options, spec=run.spec, seed=config.seed)
            for index in range(min(count, len(source))):
                cases += turns_of(task, source[index])
    if not cases:
        raise ValueError("nothing to evaluate: config.eval.tasks names no dataset with records")
    return cases


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
    """Has room for the pictures and regions of every evaluated task."""
    tasks = config.eval.tasks.to_dict().values()
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
    answerer: Answerer, model: VisionLLMv2, cases: Sequence[Case]
) -> tuple[list[Answer], dict[str, float]]:
    """The answers of a model and its scores."""
    answers = answerer(model, [case.example for case in cases])
    asked = [Question((case.truth,), case.kind) for case in cases]
    return answers, EVALS["exact_match"]([answer.text for answer in answers], asked)


def hooks(config: Config, run: Run, rebuild: Callable[[Any], VisionLLMv2]) -> list[tuple[int, Callable]]:
    """The loop's evaluation: a few questions every `config.eval.every` steps; none if that is 0."""
    if not config.eval.every:
        return []
    cases = read_cases(config, run, config.eval.quick)
    answerer = make_answerer(config, run)

    def hook(state: Any) -> Mapping[str, float]:
        _, scores = evaluate(answerer, rebuild(state), cases)
        return {f"eval/{name}": value for name, value in scores.items()}

    return [(config.eval.every, hook)]
