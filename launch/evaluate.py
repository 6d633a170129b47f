# SPDX-License-Identifier: Apache-2.0
"""Asks a trained model held-out questions, scores the answers and writes a report with pictures.

    python -m launch.evaluate --config configs/demo.py --workdir runs/demo

Scores the newest checkpoint of the run, and beside it the same model untrained and the most frequent answer
to the same question. Writes `evaluation.json` and `report.html` into the run's folder.
"""

import collections
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from data_pipelines.errors import DataError
from launch.build import build_run
from launch.heldout import Case, evaluate, make_answerer, read_cases
from launch.report import write_report
from vllm2_jax.evals.exact_match import exact_match
from vllm2_jax.train import metrics
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.state import random_model

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config the run was trained with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One process a host: find the others (TPU pods, Slurm).")
_REQUIRE = flags.DEFINE_float("require", 0.0, "Exit with 1 if the exact match is below this share.")


def main(argv: list[str]) -> None:
    """Reads the flags, evaluates, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    if _MULTIHOST.value:
        jax.distributed.initialize()
    try:
        scores = run_evaluation(_CONFIG.value, pathlib.Path(_WORKDIR.value))
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.evaluate: {error}", file=sys.stderr)
        sys.exit(2)
    if scores["exact_match"] < _REQUIRE.value:
        print(f"exact match {scores['exact_match']:.3f} is below {_REQUIRE.value}", file=sys.stderr)
        sys.exit(1)


def run_evaluation(config, workdir: pathlib.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint; prints a table, writes the files, returns the scores."""
    run = build_run(config)
    cases = read_cases(config, run)
    answerer = make_answerer(config, run)
    model = random_model(run.plan)
    _, untrained = evaluate(answerer, model, cases)
    model = load_weights(workdir / "checkpoints", model)
    answers, scores = evaluate(answerer, model, cases)
    if jax.process_index() == 0:
        frequent = most_frequent(cases)
        print(table(scores, untrained, frequent))
        found = {"trained": scores, "untrained": untrained, "most_frequent_answer": frequent}
        (workdir / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_report(workdir / "report.html", cases, answers, found, metrics.read(workdir))
        print(f"report: {workdir / 'report.html'}")
    return scores


def most_frequent(cases: Sequence[Case]) -> dict[str, float]:
    """Scores of guessing blindly: the answer that the other cases give most often to the same question.

    Where no other case asks it, to the same kind of question.
    """
    truths: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in cases:
        truths[case.question][case.truth] += 1
        truths[case.kind][case.truth] += 1

    def guess(case: Case) -> str:
        for key in (case.question, case.kind):
            others = truths[key] - collections.Counter([case.truth])
            if others:
                return others.most_common(1)[0][0]
        return ""

    return exact_match((case.kind, guess(case), case.truth) for case in cases)


def table(scores: dict[str, float], untrained: dict[str, float], frequent: dict[str, float]) -> str:
    """The scores side by side, in percent."""
    lines = [f"{'':<28}{'trained':>9}{'untrained':>11}{'blind guess':>13}"]
    for name in [key for key in scores if key != "count"]:
        values = [100 * found[name] for found in (scores, untrained, frequent)]
        lines.append(f"{name:<28}{values[0]:>8.1f}%{values[1]:>10.1f}%{values[2]:>12.1f}%")
    return "\n".join([*lines, f"{int(scores['count'])} questions"])


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
