# SPDX-License-Identifier: Apache-2.0
"""Asks a trained model held-out questions, lets its decoders look, scores both and writes a report.

    python -m launch.evaluate --config configs/demo.py --workdir runs/demo

Scores the newest checkpoint of the run, or converted weights, and beside it the same model untrained and, for
questions that are matched exactly, the most frequent answer to the same one. Writes `evaluation.json` and
`report.html` into the folder.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from launch import exits
from launch.build import build_run, rebuild
from launch.heldout import Case, Heldout
from launch.logs import hush_orbax
from launch.report import write_report
from vllm2_jax.evals.exact_match import exact_match
from vllm2_jax.train import fate, metrics
from vllm2_jax.train.checkpoint import load_weights, state_folder
from vllm2_jax.train.paths import place
from vllm2_jax.train.state import random_model

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config the run was trained with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One process a host: find the others (TPU pods, Slurm).")
_REQUIRE = flags.DEFINE_list(
    "require",
    [],
    "Exit with 1 if a value is not reached: exact_match=0.8, or exceeded: edit/edits/ratio<=0.7.",
)


def main(argv: list[str]) -> None:
    """Reads the flags, evaluates, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    if _MULTIHOST.value:
        jax.distributed.initialize()
    hush_orbax()
    try:
        with fate.shared(exits.exit_code):
            required = parse_required(_REQUIRE.value)
            scores = run_evaluation(_CONFIG.value, place(_WORKDIR.value))
            failed = out_of_bounds(scores, required)
    except Exception as error:
        code = exits.exit_code(error)
        if code == 1:
            logging.exception("the evaluation has failed")
        print(f"launch.evaluate: {error}", file=sys.stderr)
        fate.leave(code)
    if failed:
        print("\n".join(failed), file=sys.stderr)
        sys.exit(1)


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least value a score may have, or with `most` the greatest."""

    value: float
    most: bool = False

    def holds(self, score: float) -> bool:
        """False for scores that are not a number, too."""
        return score <= self.value if self.most else score >= self.value


def parse_required(texts: Sequence[str]) -> dict[str, Bound]:
    """Bounds by name, from `name=value` for the least value, `name<=value` for the greatest.

    Raises:
      ValueError: a text of another form.
    """
    required = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            required[name.removesuffix("<")] = Bound(float(value), most=name.endswith("<"))
        except ValueError:
            name = ""
        if not name.removesuffix("<"):
            raise ValueError(f"--require={text}: give name=value or name<=value, for example exact_match=0.8")
    return required


def out_of_bounds(scores: Mapping[str, float], required: Mapping[str, Bound]) -> list[str]:
    """One line for each value that is not as required.

    Raises:
      ValueError: a value that the evaluation did not find.
    """
    missing = sorted(set(required) - set(scores))
    if missing:
        raise ValueError(f"--require names {missing}; the evaluation found {', '.join(scores)}")
    return [
        f"{name} {scores[name]:.3f} is {'above' if bound.most else 'below'} {bound.value}"
        for name, bound in required.items()
        if not bound.holds(scores[name])
    ]


def run_evaluation(config, workdir: epath.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint; prints a table, writes the files, returns the scores.

    Raises:
      FileNotFoundError: there is no checkpoint, nor weights.
    """
    state_folder(workdir)  # a wrong folder is known before data is read
    run = build_run(config)
    heldout = Heldout(config, run)
    results = heldout(load_weights(workdir, rebuild(run, run.plan.abstract)))
    untrained = heldout(random_model(run.plan)).scores
    if jax.process_index() == 0:
        found = {"trained": results.scores, "untrained": untrained}
        if matched := [case for case in heldout.cases if case.task not in heldout.metrics]:
            found["most_frequent_answer"] = most_frequent(matched)
        print(table(found))
        (workdir / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        log = (
            metrics.read(workdir) if (workdir / "metrics.jsonl").exists() else []
        )  # converted weights have none
        write_report(workdir / "report.html", heldout.cases, results, found, log)
        print(f"report: {workdir / 'report.html'}")
    return results.scores


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


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The scores side by side, one column for each entry."""
    width = max(28, *(len(name) for name in found["trained"])) + 2
    lines = [f"{'':<{width}}" + "".join(f"{title.replace('_', ' '):>22}" for title in found)]
    for name in found["trained"]:
        if name != "count":
            values = [
                f"{column[name]:>22.3f}" if name in column else f"{'':>22}" for column in found.values()
            ]
            lines.append(f"{name:<{width}}" + "".join(values))
    return "\n".join([*lines, f"{int(found['trained'].get('count', 0))} questions"])


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    exits.run(main)
