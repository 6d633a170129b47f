# SPDX-License-Identifier: Apache-2.0
"""From a trained folder to answers: evaluation with its report, and the command line."""

import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines.collate import blank_row, collate, make_row
from data_pipelines.conversation import region_text
from data_pipelines.errors import DataError
from launch import build, evaluate, generate
from launch.answer import Answer, AnswerConfig, Answerer
from launch.heldout import Answered, Heldout, Results, hooks, make_answerer, read_cases, turns_of
from tests.distributed.tiny import tiny_config
from tests.weights import draw, randomized
from vllm2_jax.evals.exact_match import exact_match
from vllm2_jax.llm.generate import NO_LINK
from vllm2_jax.sharding import partition
from vllm2_jax.train import state
from vllm2_jax.train.checkpoint import save_weights
from vllm2_jax.train.loop import train


def config():
    return tiny_config(
        **{
            "steps": 2,
            "log_every": 1,
            "sharding.devices": "cpu:2",
            "eval.examples": 3,
            "eval.quick": 1,
            "eval.every": 2,
            "eval.rows": 4,
            "eval.max_new": 4,
        }
    )


@pytest.fixture(autouse=True, scope="module")
def weights():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_draw", draw)
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A run of two steps that evaluated itself once."""
    folder, made = tmp_path_factory.mktemp("run"), build.build_run(config())
    train(
        build.loop_config(config(), str(folder)),
        made.plan,
        made.train_step,
        build.data_iterator(config(), made),
        made.mesh,
        made.strategy,
        run_config=json.loads(config().to_json_best_effort()),
        hooks=hooks(config(), made, lambda state: build.rebuild(made, state)),
    )
    return folder


def test_evaluation_writes_scores_and_report(workdir, capsys):
    scores = evaluate.run_evaluation(config(), workdir)
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["trained"] == scores
    assert scores["count"] == found["untrained"]["count"] >= 9
    assert found["most_frequent_answer"].keys() == scores.keys()
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64") == min(scores["count"], 3 * 12)
    assert "<polyline" in page and "truth:" in page
    assert "most frequent answer" in capsys.readouterr().out
    said = [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]
    cases = list(read_cases(config(), build.build_run(config())))
    assert [line["task"] for line in said] == [case.task for case in cases]
    assert [(line["question"], line["truth"]) for line in said] == [(c.question, c.truth) for c in cases]
    assert {"kind", "record", "answer"} < said[0].keys()


class Asked(Heldout):
    """Instead of asking a model everything, one of its numbers."""

    def __call__(self, model):
        answers = [Answered(case, Answer(case.truth, True, (), case.truth)) for case in self.cases]
        return Results({"number": float(model.llm.embed[...][0, 0])}, answers, {}, {})


def test_converted_weights_are_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "Heldout", Asked)
    model = randomized(build.build_run(config()).plan.make_model)
    save_weights(tmp_path, model)
    found = evaluate.run_evaluation(config(), epath.Path(tmp_path))
    assert found == {"number": float(model.llm.embed[...][0, 0])}
    assert json.loads((tmp_path / "evaluation.json").read_text())["untrained"] != found
    with pytest.raises(FileNotFoundError, match="no weights in"):
        evaluate.run_evaluation(None, epath.Path(tmp_path / "typo"))  # before anything is built


@pytest.mark.parametrize("scored", [("chat",), ("chat", "caption", "region")])
def test_the_most_frequent_answer_is_to_the_questions_beside_it(workdir, scored, monkeypatch):
    monkeypatch.setattr(evaluate, "Heldout", Asked)
    monkeypatch.setattr(evaluate, "random_model", lambda plan: randomized(plan.make_model))
    own = config()
    with own.unlocked():
        for task in scored:
            own.eval.tasks[task].metrics = ("recognition",)
    evaluate.run_evaluation(own, epath.Path(workdir))
    found = json.loads((workdir / "evaluation.json").read_text())
    rest = [case for case in read_cases(own, build.build_run(own)) if case.task not in scored]
    assert found.get("most_frequent_answer", {}).get("count", 0) == len(rest)


def test_the_loop_evaluated(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "eval/exact_match" in line]
    assert [line["step"] for line in scored] == [2]


def test_answers_do_not_depend_on_the_batch():
    made = build.build_run(config())
    model, cases = randomized(made.plan.make_model), list(read_cases(config(), made))[:5]
    together = make_answerer(config(), made)(model, [case.example for case in cases])
    one = Answerer(made, AnswerConfig(rows=2, tiles=1, regions=1, max_new=4))
    alone = [one(model, [case.example])[0] for case in cases]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_each_process_answers_what_its_place_in_the_batch_asks(monkeypatch):
    """The chips of a pod's hosts, squares of the torus, take turns in the batch."""
    made = build.build_run(tiny_config(**{"sharding.devices": "cpu:4", "data.groups": 4}))
    examples = [case.example for case in list(read_cases(config(), made))[:3]]
    answerer, asked = Answerer(made, AnswerConfig(rows=2, tiles=1, regions=1, max_new=1)), {}

    def record(model, inputs, start):
        places = partition.host_groups(made.mesh, made.strategy.rules, 4)
        asked.update(zip(places, inputs.tokens, strict=True))
        return [np.zeros((4, 1), int), np.zeros(4, int), np.full((4, 1), NO_LINK), np.ones(4, bool)]

    monkeypatch.setattr(answerer, "_run", record)
    for mine, others in (((0, 2), (1, 3)), ((1, 3), (0, 2))):
        held = {0: mine, 1: others}  # this process is number 0
        monkeypatch.setattr(partition, "_held", lambda mesh, rules, held=held: held)
        assert len(answerer(None, examples)) == 3
    rows = [make_row(example, made.tokenizer, answerer.spec, answerer.shape) for example in examples]
    rows.append(blank_row(made.tokenizer, answerer.spec, answerer.shape))
    whole, _ = collate(rows, answerer.spec, answerer.shape)
    np.testing.assert_array_equal([asked[place] for place in range(4)], whole.inputs.tokens)


def test_turns_keep_the_true_answers_before_them():
    made = build.build_run(config())
    (case, *_) = read_cases(config(), made, 1)
    first, second = turns_of(
        "chat",
        _with_turns(case.example, [("human", "<image>\na?"), ("gpt", "A."), ("human", "b?"), ("gpt", "B.")]),
    )
    assert (first.question, first.truth) == ("a?", "A.")
    assert (second.question, second.truth) == ("b?", "B.")
    assert second.example.turns[1] == ("gpt", "A.")


def _with_turns(example, turns):
    import dataclasses

    return dataclasses.replace(example, turns=turns, meta={})


def test_command_line_answers(workdir, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(picture)
    generate.answer(
        workdir,
        ["What is there?", "And here: <region>?"],
        [str(picture)],
        ["0,0,0.5,1"],
        AnswerConfig(max_new=3),
    )
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_regions_are_counted_through_the_conversation(workdir, tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(picture)
    asked = []

    def record(self, model, examples):
        asked.extend(examples)
        return [Answer("It.", True, (), "It.") for _ in examples]

    monkeypatch.setattr(Answerer, "__call__", record)
    questions = ["What is <region>?", "And <region>, not <region>?"]
    regions = ["0,0,0.5,1", "0.5,0,1,1", "0,0,1,1"]
    generate.answer(workdir, questions, [str(picture)], regions, AnswerConfig(max_new=3))
    said = [turns[-1][1] for turns in (example.turns for example in asked)]
    assert region_text(1) in said[0] and region_text(2) in said[1] and region_text(3) in said[1]
    assert [len(example.regions) for example in asked] == [1, 3]


def test_what_the_command_line_refuses(workdir, tmp_path):
    truncated = tmp_path / "picture.jpg"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:200])
    few = AnswerConfig(max_new=1)
    with pytest.raises(DataError, match=r"picture\.jpg"):
        generate.answer(workdir, ["What?"], [str(truncated)], [], few)
    with pytest.raises(DataError, match="no such picture"):
        generate.answer(workdir, ["What?"], [str(tmp_path / "none.png")], [], few)
    with pytest.raises(DataError, match="<region>"):
        generate.answer(workdir, ["What is <region>?"], [], [], few)
    with pytest.raises(ValueError, match="--region needs an --image"):
        generate.answer(workdir, ["What is <region>?"], [], ["0,0,1,1"], few)
    with pytest.raises(FileNotFoundError, match="no weights in"):
        generate.answer(tmp_path, ["What?"], [], [], few)


@pytest.mark.parametrize("text", ["1,2,3", "0.5,0,0.1,1", "0,0,2,1", "a,b,c,d"])
def test_boxes_that_are_none(text):
    with pytest.raises(ValueError, match=f"--region={text}"):
        generate.boxes([text], 56)


def test_marks_are_placed_as_in_training():
    asked = generate.place_marks("What is <region> and <region>?", 1, first=True)
    assert asked == f"<image>\nWhat is {region_text(1)} and {region_text(2)}?"
    assert generate.place_marks("And <image>?", 1, first=True) == "And <image>?"
    assert generate.place_marks("And?", 1, first=False) == "And?"


def test_exact_match_by_kind():
    scores = exact_match(
        [("colour", "Red.", " red."), ("colour", "Blue.", "Red."), ("count", "Two.", "Two.")]
    )
    assert scores == {
        "exact_match": pytest.approx(2 / 3),
        "exact_match/colour": 0.5,
        "exact_match/count": 1.0,
        "count": 3,
    }
    with pytest.raises(ValueError, match="no answers"):
        exact_match([])


def test_blind_guess_is_the_most_frequent_answer():
    made = build.build_run(config())
    cases = list(read_cases(config(), made, 1))[:1] * 3
    assert evaluate.most_frequent(cases)["exact_match"] == 1.0
    assert jax.device_count() == 8


def test_required_values():
    required = evaluate.parse_required(["exact_match=0.8", "det/box/AP=0.5", "ratio<=0.7", "error<=3"])
    scores = {"exact_match": 0.8, "det/box/AP": 0.25, "ratio": 0.7, "error": 3.5}
    failed = ["det/box/AP 0.250 is below 0.5", "error 3.500 is above 3.0"]
    assert evaluate.out_of_bounds(scores, required) == failed
    assert len(evaluate.out_of_bounds(dict.fromkeys(scores, float("nan")), required)) == 4
    with pytest.raises(ValueError, match="the evaluation found exact_match"):
        evaluate.out_of_bounds({"exact_match": 1.0}, required)
    for text in ("0.8", "exact_match=high", "=1", "<=1"):
        with pytest.raises(ValueError, match=f"--require={text}"):
            evaluate.parse_required([text])


def test_metrics_have_to_fit_their_task():
    wrong = config()
    with wrong.unlocked():
        wrong.eval.tasks.chat.metrics = ("box",)
    with pytest.raises(ValueError, match=r"eval\.tasks\.chat does not take the metrics \['box'\]"):
        Heldout(wrong, build.build_run(config()))


def test_a_task_names_its_own_metrics():
    own = config()
    with own.unlocked():
        own.eval.tasks.chat.metrics = ("recognition", "anls")
    run = build.build_run(own)
    scores = Heldout(own, run, 2)(randomized(run.plan.make_model)).scores
    assert {"chat/recognition", "chat/anls", "exact_match", "exact_match/region"} <= set(scores)
    assert "exact_match/colour" not in scores


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0.0}, {"top_p": 3.0}, {"temperature": -1.0}, {"max_new": 0}, {"rows": 0}]
)
def test_settings_that_no_answer_can_have_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AnswerConfig(**wrong)
