# SPDX-License-Identifier: Apache-2.0
"""The TFDS reader on a prepared dataset of 12 records that `datasets/synthetic_tfds.py` built.

tests/golden/tfds holds `build(DIR, task="region", size=56, train=12, heldout=0)`.
"""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.datasets import synthetic, synthetic_tfds, tfds
from data_pipelines.errors import DataError

FOLDER = str(pathlib.Path(__file__).parents[1] / "golden" / "tfds")


def test_records_are_those_of_the_synthetic_source():
    read = tfds.load(folder=FOLDER, tile_size=56)
    made = synthetic.load(task="region", tile_size=56)
    assert len(read) == 12
    numbers = set()
    for index in range(12):
        example = read[index]
        split, number = example.record.split("/")
        assert split == "train"
        numbers.add(int(number))
        original = made[int(number)]
        assert example.turns == original.turns
        assert np.array_equal(example.images[0], original.images[0])
        assert np.array_equal(example.regions, original.regions)
        assert example.meta["answers"] == original.meta["answers"]
    assert numbers == set(range(12))


def test_pictures_and_regions_fit_the_tile():
    example = tfds.load(folder=FOLDER, tile_size=28, max_tiles=1)[0]
    assert example.images[0].shape == (1, 28, 28, 3) and example.regions.shape[1:] == (28, 28)
    assert example.regions.any()
    assert len(tfds.load(folder=FOLDER, tile_size=28, split="train[:25%]")) == 3


def test_reading_needs_no_tensorflow():
    code = (
        "import sys\nfrom data_pipelines.datasets import tfds\n"
        f"print(tfds.load(folder={FOLDER!r}, tile_size=14)[0].turns[1][1], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("A ") and done.stdout.endswith(". False\n")


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"dataset_info.json is missing.*give the version's folder"):
        tfds.load(folder=str(tmp_path), tile_size=14)
    with pytest.raises(DataError, match=r"field 'split': cannot read the split 'test'.*use one of train"):
        tfds.load(folder=FOLDER, tile_size=14, split="test")


def test_a_dataset_of_other_features(tmp_path):
    for name in ("dataset_info.json", "features.json"):
        text = (pathlib.Path(FOLDER) / name).read_text()
        (tmp_path / name).write_text(text.replace('"conversation"', '"dialogue"'))
    with pytest.raises(DataError, match=r"field 'conversation': the dataset has no field conversation"):
        tfds.load(folder=str(tmp_path), tile_size=14)


def test_building_asks_for_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs TensorFlow.*pip install 'vllm2-jax\[tfds\]'"):
        synthetic_tfds.build(str(tmp_path), train=1, heldout=1)
    with pytest.raises(DataError, match="no TFDS form of the task 'det'"):
        synthetic_tfds.build(str(tmp_path), task="det", train=1, heldout=1)


def test_building_keeps_off_a_dataset_that_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "vllm2_synthetic" / "region_easy" / "1.0.0"
    shutil.copytree(FOLDER, folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # as if TensorFlow were there
    with pytest.raises(DataError, match=r"1\.0\.0: there is a dataset region_easy already. Remedy"):
        synthetic_tfds.build(str(tmp_path), task="region", size=336, train=100, heldout=0)
