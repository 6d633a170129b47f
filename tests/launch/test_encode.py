# SPDX-License-Identifier: Apache-2.0
"""Encoders run once: what is on disk trains like the pictures and captions that it was made of."""

import json
import pickle

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS
from data_pipelines.collate import DECODER_COLLATE, TaskShape
from data_pipelines.encoded import Encoded
from data_pipelines.errors import DataError
from launch import build
from launch.encode import encode_dataset
from tests.launch.small_painters import config
from tests.weights import randomized
from vllm2_jax.tokens import QueryCounts
from vllm2_jax.train.checkpoint import save_weights

FIELDS = {"input_field": "image", "instruction_field": "caption", "output_field": "other"}
COUNTS = QueryCounts(generation=5)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Config and model of a run over five records; the fourth has no picture."""
    folder = tmp_path_factory.mktemp("encode")
    rng, records = np.random.default_rng(0), []
    for number in range(5):
        names = {"image": f"{number}.png", "other": f"{number}b.png"}
        for name in names.values():
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
        records.append({**names, "caption": f"a red star number {number}"})
    (folder / "3.png").unlink()
    file = folder / "records.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    made = config()
    options = {
        "t2i": {"files": {"loader": "text_to_image", "annotations": "{root}/records.jsonl"}},
        "edit": {"files": {"loader": "editing", "annotations": "{root}/records.jsonl", **FIELDS}},
    }
    with made.unlocked(), made.ignore_type():
        made.data.root = str(folder)
        made.init.weights = str(folder / "weights")
        for task, datasets in options.items():
            made.data.mixture[task].datasets = ml_collections.ConfigDict(datasets)
    model = randomized(build.build_run(made).plan.make_model, std=0.1)
    save_weights(folder / "weights", model)
    return made, model, folder, str(file)


@pytest.fixture(scope="module")
def encoded(setting):
    """Folder of each task, both written in two parts."""
    made, _, folder, _ = setting
    for task in ("t2i", "edit"):
        said = [encode_dataset(made, task, "files", str(folder / task), part, 2, 2) for part in range(2)]
        assert said[0].startswith("2 of 2 records") and said[1].startswith("2 of 3 records")
        assert "'moments': (8, 8, 8)" in said[0] and "'caption_states': (20, 16)" in said[0]
    return {task: str(folder / task) for task in ("t2i", "edit")}


def example(task, file, number, **options):
    if task == "t2i":
        source = DATASETS["text_to_image"](annotations=file, counts=COUNTS, **options)
    else:
        source = DATASETS["editing"](annotations=file, tile_size=8, counts=COUNTS, **FIELDS, **options)
    return source[number]


@pytest.mark.parametrize("task, link", [("t2i", "gen"), ("edit", "edit")])
def test_what_is_on_disk_trains_like_the_pictures(setting, encoded, task, link):
    made, model, _, file = setting
    decoder = made.data.mixture[task].decoder
    painter = model.decoders[decoder]
    sizes = {"size": 16, "caption": 20}
    room = {"moments": (8, 8, 8), "caption_states": (20, 16)}
    batches = []
    for options, capacities in (({}, sizes), ({"encoded": encoded[task]}, {**sizes, **room})):
        shape = TaskShape(1, decoder, 1, links={link: 1}, capacities=capacities)
        rows = [
            DECODER_COLLATE[decoder](example(task, file, i, **options).targets[decoder], shape)[0]
            for i in (0, 4)
        ]
        batches.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    pictures, ready = batches
    assert "image" in pictures and "image" not in ready and "caption" not in ready
    wanted = jax.jit(lambda painter, image: painter.moments(image, None))(painter, pictures["image"])
    np.testing.assert_allclose(ready["moments"], wanted, atol=2e-2)
    wanted = jax.jit(lambda painter, ids: painter.text(ids))(painter, pictures["caption"])
    np.testing.assert_allclose(ready["caption_states"], wanted, atol=2e-2)
    blank, _ = DECODER_COLLATE[decoder](None, shape)
    assert {k: (x.shape, x.dtype) for k, x in blank.items()} == {
        k: (x.shape[1:], x.dtype) for k, x in ready.items()
    }


def test_records_left_out_are_named(setting, encoded):
    _, _, _, file = setting
    with pytest.raises(DataError, match="record 3: the record was left out when its dataset was encoded"):
        example("t2i", file, 3, encoded=encoded["t2i"])


def test_workers_map_the_files_again(encoded):
    store = Encoded(encoded["t2i"], 5)
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    np.testing.assert_array_equal(again[4]["moments"], store[4]["moments"])


def test_what_raises(setting, encoded, tmp_path):
    made, _, folder, file = setting
    with pytest.raises(DataError, match="5 records, the dataset has 6"):
        Encoded(encoded["t2i"], 6)
    with pytest.raises(DataError, match="0 parts of none"):
        Encoded(str(tmp_path), 5)
    (tmp_path / "00000-of-00002").mkdir()
    with pytest.raises(DataError, match="1 parts of 2"):
        Encoded(str(tmp_path), 5)
    found = example("t2i", file, 0, encoded=encoded["t2i"])
    small = {"moments": (4, 4, 8), "caption_states": (20, 16)}
    shape = TaskShape(1, "stable_diffusion", links={"gen": 1}, capacities=small)
    with pytest.raises(DataError, match=r"\(8, 8, 8\) where there is room for \(4, 4, 8\)"):
        DECODER_COLLATE["stable_diffusion"](found.targets["stable_diffusion"], shape)
    for wrong, message in (
        (("t2i", "no", 0, 1), "no t2i/no; there are edit/files, t2i/files"),
        (("t2i", "files", 2, 2), "part 2 of 2"),
    ):
        task, dataset, part, parts = wrong
        with pytest.raises(ValueError, match=message):
            encode_dataset(made, task, dataset, str(folder / "x"), part, parts, 2)
