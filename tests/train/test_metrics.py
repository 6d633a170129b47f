# SPDX-License-Identifier: Apache-2.0
"""Metrics keep their weights, files stay valid JSON, time goes into one bucket each."""

import json
import os
import time

import jax
import numpy as np
import pytest

from vllm2_jax.train import goodput, metrics, profile


def pair(total: float, weight: float) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(total, np.float32), np.asarray(weight, np.float32)


def test_means_are_weighted_over_steps():
    window = metrics.Window()
    window.add({"lm": pair(10.0, 2.0), "box": pair(0.0, 0.0)})
    window.add({"lm": pair(2.0, 4.0)})
    assert window.take() == {"lm": 2.0, "box": 0.0}
    assert window.take() == {}


def test_lines_are_json_and_outlive_the_run(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"loss": float("nan"), "records": 3})
    text = (tmp_path / "metrics.jsonl").read_text()  # flushed although the file is open
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {**line, "time": 0} == {"step": 1, "time": 0, "loss": None, "records": 3}
    writer.close()
    again = metrics.Writer(tmp_path)
    again.write(2, {"loss": 1.0})
    again.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_a_torn_line_is_cut_when_the_run_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    writer = metrics.Writer(tmp_path)
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_only_the_first_process_writes(tmp_path):
    writer = metrics.Writer(tmp_path / "other", enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "other").exists()


@pytest.fixture
def wait(monkeypatch):
    """Time goes on by what this function is given."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_time_goes_into_buckets(wait):
    clock = goodput.Clock()
    with clock.on("data"):
        wait(5)
    with clock.on("data", hidden=lambda: True):  # the devices worked all the while
        wait(2)
    wait(3)
    values = clock.values()
    assert [values[f"seconds/{name}"] for name in ("data", "step", "other", "total")] == [5, 2, 3, 10]
    assert [values[f"time/{name}"] for name in ("data", "step", "other")] == [0.5, 0.2, 0.3]
    for kind in ("time", "seconds"):
        buckets = [value for name, value in values.items() if name.startswith(kind) and "total" not in name]
        assert sum(buckets) == pytest.approx(1.0 if kind == "time" else values["seconds/total"])
    with pytest.raises(ValueError, match="unknown time bucket 'dat'"), clock.on("dat"):
        pass


def test_rate_counts_since_the_last_call(wait):
    rate = profile.Rate()
    wait(4)
    assert rate.take(2, 100.0) == {"seconds_a_step": 2, "tokens_a_second": 25}
    wait(1)
    assert rate.take(2, 100.0) == {"seconds_a_step": 0.5, "tokens_a_second": 100}


def start(step: int, first: int, seconds: float, time: float, *, idle: float = 0.0) -> list[dict]:
    """The two lines of a start that did the steps up to `step`, `seconds` of it in steps."""
    times = {f"seconds/{name}": 0.0 for name in (*goodput.BUCKETS, "other")}
    opened = {"step": first - 1, "time": time + 1 + idle, "seconds/total": 1.0, **times, "seconds/init": 1.0}
    total = 1.0 + seconds
    closed = {**opened, "step": step, "loss": 2.0, "time": time + total + idle, "seconds/total": total}
    return [opened, closed | {"seconds/step": seconds}]


def test_goodput_of_a_run_that_was_killed():
    lines = start(10, 1, 20.0, 100.0)  # ten steps, then killed; its last checkpoint is that of step 8
    lines += start(12, 9, 8.0, 121.0, idle=5.0)
    found = goodput.whole_run(lines)
    assert found["starts"] == 2 and found["total"] == pytest.approx(35.0)
    assert found["idle"] == pytest.approx(5.0) and found["init"] == pytest.approx(2.0)
    assert found["lost"] == pytest.approx(4.0) and found["step"] == pytest.approx(24.0)
    assert goodput.describe(found).startswith(
        "goodput 68.6% of 35.0 s in 2 starts: step 24.0 s (68.6%), idle"
    )
    assert goodput.whole_run([{"step": 1, "time": 0.0, "loss": 1.0}]) == {}


def test_goodput_of_a_start_that_ended_while_it_compiled():
    lines = start(10, 1, 20.0, 100.0)[:1] + start(12, 1, 24.0, 160.0)
    found = goodput.whole_run(lines)
    assert found["starts"] == 2 and found["total"] == pytest.approx(85.0)
    assert found["init"] == pytest.approx(2.0) and found["step"] == pytest.approx(24.0)
    assert found["idle"] == pytest.approx(59.0) and found["lost"] == 0


def test_goodput_of_a_machine_that_slept():
    lines = start(10, 1, 20.0, 100.0)
    lines[1]["time"] += 1000  # the clock of the process stands still meanwhile
    found = goodput.whole_run(lines)
    assert found["starts"] == 1 and found["step"] == pytest.approx(20.0)
    assert found["idle"] == pytest.approx(1000.0)


def recorded(workdir) -> int:
    return len(list((workdir / "profile").rglob("*.xplane.pb")))


def test_profiler_window_is_written(tmp_path):
    window = profile.TraceWindow(tmp_path, first=2, steps=1)
    for step in (1, 2, 3, 4):
        window.before(step)
        assert recorded(tmp_path) == (step >= 3)
    window.close()


def test_profiler_window_on_request(tmp_path):
    request = tmp_path / "PROFILE"
    request.write_text("9")
    window = profile.TraceWindow(tmp_path, first=0, steps=0)
    window.look(1)  # of an earlier start
    os.utime(request, (1, 1))
    request.write_text("2")
    os.utime(request, (2, 2))
    window.look(2)
    for step in (3, 4, 5):
        assert not recorded(tmp_path)
        window.before(step)
    assert recorded(tmp_path) == 1
    window.look(5)
    window.before(6)
    window.close()
    assert recorded(tmp_path) == 1


def test_programs_are_counted_and_the_cache_named():
    programs = profile.programs()
    square = jax.jit(lambda x: x * x + 7.25)
    before = programs.values()
    square(1.0)
    square(2.0)
    assert programs.values()["programs/ready"] == before["programs/ready"] + 1
    assert programs.describe().endswith("without compile cache")
