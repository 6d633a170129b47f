# SPDX-License-Identifier: Apache-2.0
"""Metrics keep their weights, files stay valid JSON, time goes into one bucket each."""

import json
import time

import numpy as np
import pytest

from vllm2_jax.train import metrics, profile


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


def test_only_the_first_process_writes(tmp_path):
    writer = metrics.Writer(tmp_path / "other", enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "other").exists()


def test_time_goes_into_buckets():
    clock = profile.Clock()
    with clock.on("data"):
        time.sleep(0.05)
    shares = clock.shares()
    assert shares["time/data"] > 0.5
    assert sum(shares.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="unknown time bucket 'dat'"), clock.on("dat"):
        pass


def test_rate_counts_since_the_last_call():
    rate = profile.Rate()
    time.sleep(0.02)
    first = rate.take(2, 100.0)
    assert first["seconds_a_step"] >= 0.01
    assert first["tokens_a_second"] == pytest.approx(50 / first["seconds_a_step"])
    assert rate.take(2, 100.0)["seconds_a_step"] < first["seconds_a_step"]


def test_profiler_window_is_written(tmp_path):
    window = profile.TraceWindow(tmp_path, first=2, steps=1)
    for step in (1, 2, 3, 4):
        window.before(step)
        assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step >= 3)
    window.close()
