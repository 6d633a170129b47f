# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/weights.md, from a released folder to an answer and a drawn detection, as written."""

import contextlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from launch.convert import check_flags
from tests import fake_checkpoint

ROOT = pathlib.Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """Words of each line of the first block."""
    block = re.search(r"```\n(.*?)```", (ROOT / "docs" / "weights.md").read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_assembly_asks_for_its_config(tmp_path):
    command = [sys.executable, "-m", "launch.assemble", f"--to={tmp_path / 'start'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--config must have a value" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, as far as its kind can be seen from outside."""
    root = tmp_path_factory.mktemp("folders")
    for folder in ("run/checkpoints", "converted", "released"):
        (root / folder).mkdir(parents=True)
    (root / "converted" / "official_names.json").touch()
    (root / "released" / "config.json").touch()
    return root


@pytest.mark.parametrize(
    ("source", "like", "export", "message"),
    [
        ("released", None, False, None),
        ("converted", None, True, None),
        ("run", "converted", True, None),
        ("gone", None, False, "--from=.*gone: there is no such folder"),
        ("run", "gone", True, "--like=.*gone: there is no such folder"),
        ("run", None, False, "--from=.*run is a run, .* add --export --like=CONVERTED"),
        ("converted", None, False, "--from=.* is converted already; .* add --export"),
        ("run", None, True, "--from=.*run is a run: give the converted folder it began with as --like"),
        ("released", None, True, "--from=.*released has no official_names.json: .* without --export"),
        ("run", "released", True, "--like=.*released has no official_names.json: .* launch.convert wrote"),
        ("run", "converted", False, "--like is for an export: add --export"),
    ],
)
def test_folders_of_another_kind_are_named_with_the_flag_to_give(folders, source, like, export, message):
    flags = str(folders / source), str(folders / "new"), like and str(folders / like)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check_flags(*flags, export=export)


def test_a_target_that_is_there_is_named_first(folders):
    for target, message in (("run", "--to=.*run exists"), ("", "--to=FOLDER")):
        with pytest.raises(ValueError, match=message):
            check_flags("gone", target and str(folders / target), None, export=False)


@pytest.mark.slow
def test_from_the_released_folder_to_an_answer_and_a_detection(tmp_path):
    lines = commands()
    assert len(lines) == 5 and [line[0] for line in lines[:2]] == ["pip", "hf"]
    fake_checkpoint.write(tmp_path / "released", fake_checkpoint.small(), fake_checkpoint.CONFIG_SMALL)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []
    for _, *words in lines[2:]:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert len(said[1].strip()) > 20, "the answer of a random model is some text"
    assert re.search(r"(person|dog) 0\.\d+\n", said[2])
    (written,) = re.findall(r"wrote (.*)\.json and \1\.png", said[2])
    with Image.open(tmp_path / f"{written}.png") as drawn:
        assert drawn.size == (120, 90)
