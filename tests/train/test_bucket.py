# SPDX-License-Identifier: Apache-2.0
"""A run whose folder lies in a bucket: checkpoints, metrics, resume, and a profile that somebody asks for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.train.bucket import bucket, environment
from tests.train.test_loop import losses
from vllm2_jax.train.paths import in_bucket, place

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os
import urllib.request
from tests.train.stream import run
from vllm2_jax.train import profile
from vllm2_jax.train.checkpoint import state_folder

folder = "gs://runs/one"
for steps in (3, 5):
    run(folder, steps, devices="cpu:1", save_every=2, keep=2)
    assert str(state_folder(folder)) == f"{folder}/checkpoints/{steps}/state"
window = profile.TraceWindow(folder, 0, 0)
window.look(1)
assert not window._last
upload = os.environ["STORAGE_EMULATOR_HOST"] + "/upload/storage/v1/b/runs/o?uploadType=media&name="
urllib.request.urlopen(upload + "one/PROFILE", b"3")
window.look(1)
assert window._last == 5, window._last
"""


@pytest.mark.slow
def test_run_in_a_bucket(tmp_path):
    with bucket() as server:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=os.environ | environment(server),
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert all(name.startswith("one/") for name in server.objects)
        kept = {name.split("/")[2] for name in server.objects if name.startswith("one/checkpoints/")}
        assert {step for step in kept if step.isdigit()} == {"4", "5"}
        text = server.objects["one/metrics.jsonl"][1].decode()
    (tmp_path / "metrics.jsonl").write_text(text)
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5]
    opened = [json.loads(line)["step"] for line in text.splitlines() if '"loss"' not in line]
    assert opened == [0, 3, 3, 5]


def test_paths_of_buckets_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(place("gs://runs/one") / "checkpoints") == "gs://runs/one/checkpoints"
    assert str(place("one")) == str(tmp_path / "one") and str(place("/one")) == "/one"
    assert in_bucket(place("gs://runs/one")) and not in_bucket(place("one"))
