# SPDX-License-Identifier: Apache-2.0
"""Asks a trained model held-out questions, lets its decoders look, scores both and writes a report.

    python -m launch.evaluate --config configs/demo.py --workdir runs/demo
    python -m launch.evaluate --workdir converted --sets detection/coco,pose --root DATA

Scores the newest checkpoint of the run, or converted weights. The first form asks what the config holds out,
and beside the model the same one untrained and, for questions that are matched exactly, the most frequent
answer to the same one. The second asks the published validation sets (`HELDOUT` in `configs/mixtures.py`) of
the model whose config lies in the folder. Writes `evaluation.json`, `report.html` and what was said in words,
`answers.jsonl`, into the folder.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from configs.mixtures import HELDOUT
from launch import exits
from launch.build import build_run, rebuild
from launch.heldout import Answered, Case, Heldout, Results
from launch.logs import hush_orbax
from launch.report import write_report
from launch.saved import config_to_ask, saved_model
from vllm2_jax.evals.exact_match import exact_match
from vllm2_jax.train import fate, metrics
from vllm2_jax.train.checkpoint import load_weights, state_folder
from vllm2_jax.train.paths import make_folder, place
from vllm2_jax.train.state import random_model

_LONGEST = 100  # tokens of an answer: what the official evaluation gives benchmarks with longer answers

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config the run was trained with.")
_SETS = flags.DEFINE_list(
    "sets", [], "Instead of --config: published sets; detection are all of a kind, detection/coco one."
)
_ROOT = flags.DEFINE_string("root", "", "Folder of these sets, as {root} in configs/mixtures*.py.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Records of each of these sets; 0: all.", lower_bound=0)
_PICTURES = flags.DEFINE_integer("pictures", 8, "Pictures, or questions, at once on a host.", lower_bound=1)
_STRATEGY = flags.DEFINE_string("strategy", "fsdp", "How the model of --sets is laid over the devices.")
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
    logging.set_verbosity(logging.INFO)  # how far it is
    try:
        with fate.shared(exits.exit_code):
            required = parse_required(_REQUIRE.value)
            if bool(_SETS.value) == (_CONFIG.value is not None):
                raise ValueError("give --config, or --sets with --root: what the model is asked")
            of_sets = [flag.name for flag in (_ROOT, _EXAMPLES, _PICTURES, _STRATEGY) if flag.present]
            if of_sets and not _SETS.value:
                raise ValueError(f"--{of_sets[0]} is for --sets; set keys of --config, as --config.data.root")
            if _SETS.value and not _ROOT.value:
                raise ValueError("the files of --sets lie in one folder: give it as --root=FOLDER")
            workdir = place(_WORKDIR.value)
            state_folder(workdir)  # a wrong folder is named, not made
            make_folder(workdir, "--workdir")  # nor is an hour lost for what cannot be written
            if _SETS.value:
                asked = published(_SETS.value), _ROOT.value, _EXAMPLES.value, _PICTURES.value
                scores = evaluate_sets(workdir, *asked, strategy=_STRATEGY.value)
            else:
                scores = run_evaluation(_CONFIG.value, workdir)
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


def published(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`config.eval.tasks` for published sets: `detection` are all of a kind, `detection/coco` is one.

    Raises:
      ValueError: there is no such set.
    """
    kinds = [kind for kind in HELDOUT if not kind.startswith("synthetic")]
    tasks = {f"{kind}/{task}": entry for kind in kinds for task, entry in HELDOUT[kind].items()}
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        chosen = {key: entry for key, entry in tasks.items() if name in (key, key.partition("/")[0])}
        if not chosen:
            raise ValueError(f"--sets={name}: no such set; there are {', '.join([*kinds, *tasks])}")
        found |= chosen
    return found


def evaluate_sets(
    workdir: epath.Path,
    tasks: dict[str, dict[str, Any]],
    root: str,
    examples: int = 0,
    pictures: int = 8,
    *,
    strategy: str = "fsdp",
) -> dict[str, float]:
    """Scores the model of a folder, whose config lies there too; loads the decoders that are needed.

    Args:
      workdir: of a run, or converted weights.
      tasks: for `config.eval.tasks`.
      root: folder of the datasets.
      examples: records of each dataset; 0 are all.
      pictures: that a host looks at at once.
      strategy: how the model is laid over the devices.

    Raises:
      FileNotFoundError: there is no checkpoint.
      DataError: a file of a dataset is missing or wrong.
      ValueError: the model lacks a decoder.
    """
    decoders = {entry["decoder"] for entry in tasks.values() if "decoder" in entry}
    config = config_to_ask(workdir, strategy, decoders)
    if missing := decoders - set(config.model.decoders):
        raise ValueError(f"the model in {workdir} lacks what --sets ask for: {', '.join(sorted(missing))}")
    with config.unlocked(), config.ignore_type():
        config.data.root = root
        config.eval.tasks = tasks
        config.eval.examples, config.eval.max_new = examples, _LONGEST
        config.eval.pictures = config.eval.rows = pictures
    run = build_run(config)
    heldout = Heldout(config, run)
    results = heldout(saved_model(workdir, run))
    write(workdir, results, {"trained": results.scores})
    return results.scores


def run_evaluation(config: ml_collections.ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Evaluates the newest checkpoint; prints a table, writes the files, returns the scores.

    Raises:
      FileNotFoundError: there is no checkpoint, nor weights.
    """
    state_folder(workdir)  # a wrong folder is known before data is read
    run = build_run(config)
    heldout = Heldout(config, run)
    results = heldout(load_weights(workdir, rebuild(run, run.plan.abstract)))
    found = {"trained": results.scores, "untrained": heldout(random_model(run.plan)).scores}
    cases = [one.case for one in results.answers]
    if matched := [case for case in cases if case.task not in heldout.metrics]:
        found["most_frequent_answer"] = most_frequent(matched)
    write(workdir, results, found)
    return results.scores


def write(workdir: epath.Path, results: Results, found: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the table of one process and writes its files."""
    if jax.process_index() != 0:
        return
    print(table(found))
    (workdir / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    # Converted weights have no log.
    log = metrics.read(workdir) if (workdir / "metrics.jsonl").exists() else []
    write_report(workdir / "report.html", results, found, log)
    if results.answers:
        lines = [json.dumps(_line(one), ensure_ascii=False) for one in results.answers]
        (workdir / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"report: {workdir / 'report.html'}")


def _line(one: Answered) -> dict[str, str]:
    case = one.case
    return {
        "task": case.task,
        "kind": case.kind,
        "record": case.example.record,
        "question": case.question,
        "answer": one.answer.text,
        "truth": case.truth,
    }


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
    if "count" in found["trained"]:
        lines.append(f"{int(found['trained']['count'])} questions")
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main)
