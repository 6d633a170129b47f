# SPDX-License-Identifier: Apache-2.0
"""The input of one host against what its share of a predicted step needs."""

import json
import pathlib
import re

import pytest

from configs import base
from launch import feed

ROOT = pathlib.Path(__file__).parents[2]
REPORT = ROOT / "docs" / "compile" / "stage1_tune_v5p_64.json"


def test_need_is_that_of_the_report():
    found = json.loads(REPORT.read_text())
    need = feed.needed(str(REPORT), 0.0, 0)
    assert need == feed.Need(found["times"]["best"], 16)  # 64 chips, four on each host
    assert feed.needed(str(REPORT), 2.0, 8) == feed.Need(2.0, 8) == feed.needed("", 2.0, 8)


def test_need_at_fault(tmp_path):
    with pytest.raises(ValueError, match="--step_seconds and --hosts"):
        feed.needed("", 1.0, 0)
    (tmp_path / "one.json").write_text('{"devices": 8, "times": null, "problem": "too big"}')
    with pytest.raises(ValueError, match=r"one\.json predicts no step: too big"):
        feed.needed(str(tmp_path / "one.json"), 0.0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_host_is_measured(workers, capsys):
    config = base.get_config("tiny")
    config.data.groups, config.data.threads = 4, 1
    times = feed.feed(config, feed.Need(2.0, 4), workers, batches=2)
    line = capsys.readouterr().out
    made, needed = (float(x) for x in re.findall(r"([\d.]+) examples/s", line))
    assert times == pytest.approx(made / needed, rel=0.05) and times > 0
    # 2 seconds for one group of a row of each task of the mixture, some of which hold several examples.
    rows = sum(task["rows"] for task in config.data.mixture.to_dict().values())
    assert needed >= 0.9 * rows / 2 and f"{workers} workers" in line and "1 groups in 2.00 s" in line


def test_groups_that_do_not_split(capsys):
    with pytest.raises(ValueError, match="8 groups do not split over 3 hosts"):
        feed.feed(base.get_config("tiny"), feed.Need(1.0, 3), 0, batches=1)
