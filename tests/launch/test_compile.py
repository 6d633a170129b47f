# SPDX-License-Identifier: Apache-2.0
"""Reports about programs for devices that are not there: numbers add up, errors say what to change."""

import dataclasses
import json
import os
import re
import types
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from launch import compile as aot
from launch import executables, tpu_flags
from launch import sweep as sweeps
from launch.abstract import abstract_batch
from launch.build import build_run
from launch.chart import chart
from launch.compile_report import Memory, Report, check_weights, explain, markdown, weight_bytes
from launch.programs import kept, make_job
from launch.roofline import Roofline
from launch.scheduled import read_memory, scheduled
from tests.distributed.tiny import host_batch, tiny_config
from vllm2_jax.sharding.chips import find_chip


def config(**overrides):
    return tiny_config(**{"sharding.devices": "cpu:8", **overrides})


def small():
    """One task on two devices: the smallest step that has collectives."""
    one = config(**{"sharding.devices": "cpu:2", "data.groups": 2})
    aot.choose_tasks(one, ["chat"])
    return one


@pytest.fixture(scope="module")
def compiled():
    return aot.compiled(small(), chip="v5e")


def test_the_batch_is_the_one_that_the_data_gives():
    found, expected = (
        [(path, x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(batch)]
        for batch in (abstract_batch(config(), build_run(config())), host_batch())
    )
    assert found == expected


def test_operations_are_those_of_the_model(compiled):
    report, run = compiled.report, compiled.run
    # Two counts that share nothing: the traced program of the whole batch, the compiled one of a device.
    assert report.flops * run.mesh.size == pytest.approx(report.model_flops, rel=0.02)
    assert sum(part["flops"] for part in report.by_part.values()) == report.flops
    assert report.by_part["llm"]["flops"] > report.by_part["vision"]["flops"] > 0
    assert report.unknown_loops == 0


@pytest.mark.slow
def test_remat_shows_as_work_beyond_the_model():
    one = config(**{"remat.llm": "full", "sharding.devices": "cpu:1", "data.groups": 1})
    report = aot.compiled(one).report
    assert 1.05 < report.flops / report.model_flops < 1.4  # the forward pass once more is at most a third
    assert report.times is None and report.chip is None


def test_memory_holds_the_state(compiled):
    report, run = compiled.report, compiled.run
    state = sum(report.state.values())
    shard = sum(
        np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(run.plan.abstract)
    )
    assert state == shard - 4  # all but the step
    assert state < report.memory.arguments < report.memory.total
    assert report.memory.aliased >= state - report.state["frozen"]


def test_the_report_as_text_and_json(compiled):
    report, run = compiled.report, compiled.run
    data = json.loads(json.dumps(report.to_json()))
    assert 0 < data["mfu_worst"] <= data["mfu_best"] < 1
    assert {row["kind"] for row in data["collectives"]} >= {"all-gather", "all-reduce"}
    text = markdown(report)
    assert "| strategy | fsdp: data=1, fsdp=2 |" in text and "| all-gather | fsdp |" in text
    found = kept(compiled.job, run)
    hidden = (2, 2, 96, 64)  # layers, rows, columns, width
    assert any(x.shape == hidden for x in found["llm"])
    parts = explain(run, compiled.job, report, found)
    assert "| llm/layers | 73,984 |" in parts
    assert re.search(r"\| llm \| \d+ \| [\d.]+ MiB \| float32\[", parts)
    assert weight_bytes(compiled.job.weights, run.mesh) == report.state


def test_an_executable_is_saved_and_reused(compiled, tmp_path):
    devices = list(compiled.run.mesh.devices.flat)
    file = tmp_path / "step"
    assert executables.save(file, compiled.program, devices, name="train", config=small()) > 10_000
    loaded = executables.load(file, devices, name="train", config=small())
    state = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), compiled.run.plan.abstract),
        out_shardings=compiled.run.plan.shardings,
    )
    batch = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), compiled.job.arguments[1]
    )
    (first, _), (second, metrics) = (step(state(), batch) for step in (compiled.program, loaded))
    assert float(metrics["finite"][0]) == 1
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    again = aot.compiled(small(), chip="v5e", load=str(file), flops=1.0).report
    assert again.collectives == compiled.report.collectives
    with pytest.raises(ValueError, match=r"compiled for 2 devices of kind 'cpu' \(cpu:2\), these are 8"):
        executables.load(file, jax.devices(), name="train", config=small())
    with pytest.raises(ValueError, match="holds the program 'train', not 'generate'"):
        executables.load(file, devices, name="generate", config=small())
    for damaged in (b"no program", b"cd /a/folder\nx\n", file.read_bytes()[:5000]):
        (tmp_path / "half").write_bytes(damaged)
        with pytest.raises(ValueError, match="half is no saved program, or damaged: compile it again"):
            executables.load(tmp_path / "half", devices, name="train", config=small())


def test_loaded_programs_do_not_run_where_they_would_wait_for_ever():
    executables.check_can_run(jax.devices()[:1])
    with pytest.raises(ValueError, match=r"does not run on 2 CPU devices.*without --executable"):
        executables.check_can_run(jax.devices()[:2])


def test_an_executable_trains_by_its_own_config_only(compiled, tmp_path):
    devices = list(compiled.run.mesh.devices.flat)
    file = tmp_path / "step"
    executables.save(file, compiled.program, devices, name="train", config=small())
    other = small()
    other.log_every, other.data.root, other.eval.every = 7, "/elsewhere", 3  # reach no program
    executables.load(file, devices, name="train", config=other)
    other.optimizer.peak = 0.5  # a constant in it
    with pytest.raises(ValueError, match=r"another config: config.optimizer.peak was 0.001, is 0.5"):
        executables.load(file, devices, name="train", config=other)


def test_state_beyond_the_memory_is_named():
    def check(strategy):
        run = build_run(config(**{"sharding.strategy": strategy}))
        check_weights(make_job("train", config(), run).weights, run.mesh, 2**20)

    with pytest.raises(ValueError, match=r"Largest is 'vision' with .*, whole on every device; take a"):
        check("dp")
    check("fsdp")


def report(memory=2**30, seconds=1.0, problem=""):
    stats = None if problem else Memory(memory, 0, 0, 0, 0)
    times = None if problem else Roofline(seconds, 0.0, seconds, seconds / 2, 0.0)
    return Report(
        "", {}, 4, find_chip("v5e"), memory=stats, state={}, problem=problem, model_flops=1e13, times=times
    )


def test_momentum_of_muon_belongs_to_its_module(compiled):
    one = small()
    one.optimizer.muon = r"^llm/layers/.*/kernel$"
    run = build_run(one)
    found = explain(run, make_job("train", one, run), compiled.report, {})
    rows = re.findall(r"^\| ([\w/]+) \| [\d,]+ \|", found, re.MULTILINE)
    assert "llm/layers" in rows and "1" not in rows


def test_sweep_ranks_and_goes_on_after_errors(capsys):
    def compiled(one):
        if one.sharding.strategy == "dp":
            raise ValueError("does not divide")
        if one.data.groups == 32:
            return report(problem="Used 20G of 16G")
        return report(seconds=1 / one.data.groups, memory=one.data.groups * 2**27)

    options = ["sharding.strategy=fsdp|dp", "data.groups=8|16|32"]
    ranking = sweeps.sweep(config(), options, compiled)
    assert [name for name, _ in ranking[:3]] == [
        "sharding.strategy=fsdp data.groups=16",
        "sharding.strategy=fsdp data.groups=8",
        "sharding.strategy=fsdp data.groups=32",
    ]
    assert [found for _, found in ranking[3:]] == ["does not divide"] * 3
    assert len(capsys.readouterr().out.splitlines()) == 6
    text = sweeps.text(ranking)
    assert "groups=32  does not fit: Used 20G of 16G" in text
    assert text.endswith("smallest that fits: sharding.strategy=fsdp data.groups=16 (4 devices)\n")
    drawn = xml.etree.ElementTree.fromstring(chart(ranking, "one & two"))
    words = [node.text for node in drawn.iter() if node.text and node.tag.endswith("text")]
    assert words[0] == "one & two" and "does not fit: Used 20G of 16G" in words
    assert sum(node.tag.endswith("rect") for node in drawn.iter()) == 1 + 2 * 3


def test_the_smallest_slice_is_the_first_that_fits():
    ranking = [
        ("64", dataclasses.replace(report(), devices=64)),
        ("16", dataclasses.replace(report(), devices=16)),
        ("8", dataclasses.replace(report(memory=2**40), devices=8)),
        ("4", dataclasses.replace(report(problem="too big"), devices=4)),
    ]
    assert sweeps.smallest(ranking)[0] == "16"
    assert sweeps.smallest(ranking[2:]) is None and "nothing fits" in sweeps.text(ranking[2:])


def test_the_command_leaves_out_what_it_wrote(monkeypatch):
    given = ["--config", "a", "--out", "x", "--sweep=b=1|2", "--save=y", "--explain"]
    command = "python -m launch.compile --config a '--sweep=b=1|2' --explain"
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    tpu_flags.set_flags()
    assert os.environ["LIBTPU_INIT_ARGS"] == " ".join(tpu_flags.FLAGS) and aot.command(given) == command
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--own=1")
    tpu_flags.set_flags()
    tpu_flags.set_flags()
    # The last of two equal options counts, so one's own stand behind ours.
    assert os.environ["LIBTPU_INIT_ARGS"] == " ".join([*tpu_flags.FLAGS, "--own=1"])
    assert aot.command(given) == f"LIBTPU_INIT_ARGS=--own=1 {command}"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: sweeps.sweep(config(), ["data.groups"], report), r"not of the form key=value\|value"),
        (lambda: sweeps.set_key(config(), "data.group", "8"), "no key 'data.group'"),
        (lambda: sweeps.set_key(config(), "data.mixture", "8"), "cannot be swept"),
        (lambda: sweeps.set_key(config(), "named_links", "yes"), "named_links=yes: it is true or false"),
        (lambda: aot.choose_tasks(config(), ["pose"]), "no task pose; the mixture has caption, chat, region"),
        (lambda: aot.compiled(config(), chip="v9"), "unknown chip 'v9'; choose one of v4"),
        (lambda: aot.compiled(config(**{"data.groups": 6})), "6 groups do not split over 8"),
        (lambda: aot.compiled(config(**{"sharding.mesh": "fsdp=3"})), "do not divide the 8 devices"),
        (lambda: aot.compiled(config(), program="predict"), "unknown program 'predict'; choose one of train"),
        (lambda: aot.compiled(config(), program="unipose"), r"no task .* calls the decoder 'unipose'"),
        (lambda: aot.compiled(config(**{"sharding.devices": "v5x:4x4"})), "no TPU topology 'v5x:4x4': the"),
    ],
)
def test_errors_say_what_to_change(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_truth_values_are_swept():
    one = config()
    for text, value in (("true", True), ("false", False), ("True", True), ("False", False)):
        sweeps.set_key(one, "named_links", text)
        assert one.named_links is value


@pytest.mark.parametrize(
    ("run", "given", "message"),
    [
        (aot._swept, {"save": "step", "explain": True}, "--save and --explain: for one program, a sweep"),
        (aot._swept, {"load": "step"}, "--load: for one program"),
        (aot._swept, {"text": "file"}, "--text: for one program"),
        (aot._one, {"chart": "file.svg"}, "--chart draws a sweep; give --sweep"),
        (aot._one, {"schedule_only": True, "load": "step"}, "--schedule_only makes no executable"),
    ],
)
def test_flags_that_do_not_go_together(run, given, message, monkeypatch):
    flags = dict.fromkeys(("save", "load", "text", "chart", "explain", "schedule_only"))
    monkeypatch.setattr(aot, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(**flags | given)))
    with pytest.raises(ValueError, match=message):
        run(config(), "")


def test_some_tasks_alone():
    one = ml_collections.ConfigDict(config())
    aot.choose_tasks(one, ["chat"])
    assert list(abstract_batch(one, build_run(one))) == ["chat"]


BUFFERS = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 reduce_sum.5 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 4096, parameter 3, shape |f32[8,128]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 1024, parameter 4, shape |s32[256]| at ShapeIndex {}:
allocation 3: size 128, output shape is |(f32[8,128], f32[])|, maybe-live-out:
allocation 4: size 64, constant:
allocation 5: size 2048, color 1, preallocated-temp:
allocation 6: size 8192, preallocated-temp:
"""


def test_memory_of_a_program_without_code():
    memory = read_memory(BUFFERS)
    assert memory == Memory(arguments=5120, outputs=4224, aliased=4096, temporaries=8192, code=None)
    assert memory.total == 5120 + 128 + 8192
    with pytest.raises(ValueError, match="only programs for a TPU are scheduled"):
        scheduled(small(), "train")


def test_a_compiler_that_the_system_kills_is_an_error_that_says_so(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    config = small()
    config.sharding.devices = "v5e:1x1"
    with pytest.raises(RuntimeError, match="killed, probably as memory ran out"):
        scheduled(config, "train")


@pytest.mark.tpu_compile
def test_a_program_without_code_is_the_same_program():
    one = config(**{"sharding.devices": "v5e:2x2", "data.groups": 4, "dtype": "bfloat16"})
    aot.choose_tasks(one, ["region"])
    whole, early = (aot.compiled(one, flops=1.0, schedule_only=only) for only in (False, True))
    assert early.program is None and early.report.memory.code is None
    found, wanted = early.report.memory, whole.report.memory
    assert (found.arguments, found.outputs, found.aliased) == (
        wanted.arguments,
        wanted.outputs,
        wanted.aliased,
    )
    assert wanted.aliased >= sum(whole.report.state.values())  # the new state takes the place of the old one
    assert {row.kind for row in whole.report.collectives} >= {"all-gather", "all-reduce"}
    # With code the compiler also counts what lies on the chip, up to the 128 MiB there are.
    assert 0 <= wanted.temporaries - found.temporaries < 2**27
    for field in ("flops", "bytes", "collectives", "by_part", "times"):
        assert getattr(early.report, field) == getattr(whole.report, field)
