# SPDX-License-Identifier: Apache-2.0
"""What is written of several steps at once, and how many bad ones a run may have."""

import contextlib
import time

import numpy as np
import pytest
from tqdm import tqdm

from vllm2_jax.train import metrics
from vllm2_jax.train.goodput import Clock
from vllm2_jax.train.monitor import Monitor, NotFiniteError

SECONDS = 0.02  # that a step takes at least


def follow(workdir, steps, **settings):
    """The lines that are written of `steps`, each its metrics by name."""
    with contextlib.closing(metrics.Writer(workdir)) as writer:
        monitor = Monitor(writer, Clock(), tqdm(disable=True), last=len(steps), **settings)
        for number, step in enumerate(steps, start=1):
            found = {name: (np.float32(value), np.float32(1)) for name, value in step.items()}
            monitor.follow(number, found, {"skipped": number})
            time.sleep(SECONDS)
        monitor.settle()
    return metrics.read(workdir)


def step(loss, tokens=10.0, rate=0.1):
    return {"loss": loss, "tokens": tokens, "learning_rate": rate, "finite": np.isfinite(loss)}


def test_a_line_is_of_the_steps_since_the_one_before(tmp_path):
    steps = [step(loss, tokens=10 * loss, rate=loss / 10) for loss in (1, 2, 6, 3, 5)]
    lines = follow(tmp_path, steps, every=3, bad_steps=1)
    assert [(line["step"], line["loss"]) for line in lines] == [(3, 3.0), (5, 4.0)]
    assert [line["data/skipped"] for line in lines] == [1 + 2 + 3, 1 + 2 + 3 + 4 + 5]
    for line in lines:
        assert line["learning_rate"] == pytest.approx(line["loss"] / 10)
        assert line["seconds_a_step"] >= SECONDS
        assert line["tokens_a_second"] * line["seconds_a_step"] == pytest.approx(10 * line["loss"])


def test_a_bad_step_does_not_hide_the_others_of_its_line(tmp_path):
    losses = [1.0, float("nan"), 3.0, float("nan"), float("inf"), float("nan")]
    lines = follow(tmp_path, [step(loss) for loss in losses], every=3, bad_steps=9)
    assert [line["loss"] for line in lines] == [2.0, None]
    assert [line["finite"] for line in lines] == [pytest.approx(2 / 3), 0.0]


def test_bad_steps_count_in_a_row_only(tmp_path):
    good, bad = step(1.0), step(float("nan"))
    lines = follow(tmp_path / "recovers", [good, bad, good, bad, good, good], every=1, bad_steps=2)
    assert [line["finite"] for line in lines] == [1, 0, 1, 0, 1, 1]
    assert lines[1]["loss"] is None and lines[2]["loss"] == 1
    with pytest.raises(NotFiniteError, match="step 4: not finite for 2 steps in a row: loss"):
        follow(tmp_path / "stops", [bad, good, bad, bad, good], every=1, bad_steps=2)
    assert [line["step"] for line in metrics.read(tmp_path / "stops")] == [1, 2, 3]
