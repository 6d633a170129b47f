# SPDX-License-Identifier: Apache-2.0
"""Two processes score what one process scores."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from tests.distributed.scorer import score

ROOT = pathlib.Path(__file__).parents[2]


def test_same_scores_on_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.distributed.scorer"]
    files = [tmp_path / f"{number}.json" for number in range(2)]
    pair = [
        subprocess.Popen(
            [*command, str(number), str(port), str(file)], cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}
        )
        for number, file in enumerate(files)
    ]
    try:
        assert [process.wait(timeout=80) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
    alone = score(0, 1)
    assert [json.loads(file.read_text()) for file in files] == [alone, alone]
    assert 0 < alone["mask/AP"] < 1 and 0 < alone["vqa"] < 1
