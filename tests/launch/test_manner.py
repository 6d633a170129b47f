# SPDX-License-Identifier: Apache-2.0
"""The command line asks in the words, and shows pictures of the size, that readers of files use in tests."""

import json
import types

import numpy as np
import pytest

from configs import base
from data_pipelines import DATASETS
from data_pipelines.conversation import link
from data_pipelines.images import load_image
from launch import predict
from launch.manner import manner_of
from launch.paint import PAINTED
from launch.released import run_config
from tests import fake_checkpoint
from tests.data_pipelines import objects
from vllm2_jax.convert.official import model_config
from vllm2_jax.tokens import QueryCounts

RUN = types.SimpleNamespace(model=types.SimpleNamespace(queries=QueryCounts()))


def learnt_from(decoder, **datasets):
    """The config of a run with one task."""
    config = base.get_config()
    with config.unlocked(), config.ignore_type():
        config.data.mixture = {"task": {"rows": 1, "decoder": decoder, "datasets": datasets}}
    return config


def detection(folder):
    file = objects.write(folder, objects.coco(objects.annotation("horse", category_id=1), categories=HORSE))
    return "det", ("Horse",), (), "detection", file


def keypoints(folder):
    points = {"category_id": 1, "keypoints": [10, 12, 2, 20, 14, 2], "num_keypoints": 2}
    category = [{"id": 1, "name": "horse", "keypoints": ["left_ear", "right_ear"]}]
    file = objects.coco(objects.annotation("horse", **points), categories=category)
    options = objects.write(folder, file) | {"keypoints": "file"}
    return "pose", ("horse",), ("left ear", "right ear"), "keypoints", options


def referring(folder):
    file = objects.coco(objects.annotation("horse"), image={"expressions": ["the horse on the LEFT!"]})
    return "grd", ("the horse on the LEFT!",), (), "referring", objects.write(folder, file)


def semantic(folder):
    (folder / "labels").mkdir()
    objects.save_mask(folder / "labels/a.png", np.ones((objects.HEIGHT, objects.WIDTH), np.uint8))
    (folder / "names.json").write_text(json.dumps(["Horse", "dog"]))
    roots = {"image_root": str(folder), "mask_root": str(folder / "labels"), "tile_size": objects.TILE}
    options = {**roots, "names": str(folder / "names.json"), "decoder_size": 64}
    return "seg", ("Horse", "dog"), (), "semantic", options


HORSE = [{"id": 1, "name": "Horse"}]


@pytest.mark.parametrize("write", [detection, keypoints, referring, semantic])
def test_a_run_that_learnt_from_files_is_asked_like_them(write, tmp_path):
    objects.save_picture(tmp_path)
    task, classes, points, loader, options = write(tmp_path)
    decoder = predict.TASKS[task].decoder
    told = DATASETS[loader](**options, test=True)[0]
    manner = manner_of(learnt_from(decoder, mine={"loader": loader, **options}), task, decoder)
    asked = predict.Asked(task, classes, points)
    question, answer = manner.turns(predict.slots(asked), predict.links(asked, RUN, manner))
    assert [("human", f"<image>\n{question}"), ("gpt", answer)] == told.turns
    picture = manner.fitted(load_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(picture, told.targets[decoder]["image"])
    assert manner.size is not None and manner.max_tiles == 4


@pytest.mark.parametrize("task", ["gen", "edit"])
def test_so_is_a_painter(task, tmp_path):
    objects.save_picture(tmp_path)
    record = {"image": "a.png", "input": "a.png", "output": "a.png"}
    record |= {"caption": "A red horse.", "instruction": "make it Blue."}
    (tmp_path / "records.jsonl").write_text(json.dumps(record))
    loader = {"gen": "text_to_image", "edit": "editing"}[task]
    options = {"annotations": str(tmp_path / "records.jsonl"), "test": True}
    told = DATASETS[loader](**options, **({"tile_size": objects.TILE} if task == "edit" else {}))[0]
    manner = manner_of(learnt_from(PAINTED[task], mine={"loader": loader}), task, PAINTED[task])
    assert manner.name("a dog") == ""
    words = record["caption" if task == "gen" else "instruction"]
    question, answer = manner.turns([words], [link("", task, QueryCounts())])
    assert [told.turns[0][1].removeprefix("<image>\n"), told.turns[1][1]] == [question, answer]


def test_own_wordings_and_a_root(tmp_path):
    (tmp_path / "mine.json").write_text('{"detection": ["Any {classes}?"], "detected": ["Yes: {link}!"]}')
    config = learnt_from("grounding_dino", detection={"templates": "{root}/mine.json", "max_tiles": 2})
    config.data.root = str(tmp_path)
    manner = manner_of(config, "det", "grounding_dino")
    assert manner.turns(["dog, cat"], ["..."]) == ("Any dog, cat?", "Yes: ...!")
    assert manner.max_tiles == 2 and manner.size == 1333
    # A task that was not trained is asked as its own reader would, with pictures as the decoder knows them.
    other = manner_of(config, "grd", "grounding_dino")
    assert other.turns(["The dog."], ["..."])[0] == "Show me the dog." and other.max_tiles == 2


def test_a_run_that_learnt_from_scenes_is_asked_like_them():
    config = learnt_from("stable_diffusion", synthetic={"task": "t2i"})
    silent = manner_of(config, "gen", "stable_diffusion")
    config.named_links = True
    named = manner_of(config, "gen", "stable_diffusion")
    # Only links that spell have the prompt in front.
    assert (silent.name("A star"), named.name("A star")) == ("", "A star")
    assert named.turns(["A huge red star."], ["[GEN]"]) == ("Paint this: A huge red star.", "Done: [GEN].")
    assert named.size is None and named.fitted(objects.picture()).shape == objects.picture().shape
    pose = manner_of(learnt_from("unipose", synthetic={"task": "pose"}), "pose", "unipose")
    assert pose.turns(["person", "nose"], ["a", "b"])[1] == "Found: a. Keypoints: b."


def test_released_weights_can_be_asked_for_everything():
    listed = fake_checkpoint.small()
    sizes = model_config(fake_checkpoint.CONFIG_SMALL, {name: shape for name, (shape, _) in listed.items()})
    config = run_config(sizes)
    for task, kind in predict.TASKS.items():
        assert manner_of(config, task, kind.decoder).size is not None
        assert predict.capacities_of(config.data.mixture.to_dict(), kind.decoder)["size"] == 1344
    for task, decoder in PAINTED.items():
        capacities = predict.capacities_of(config.data.mixture.to_dict(), decoder)
        assert "tokenizer" not in capacities and capacities["size"] == {"gen": 512, "edit": 256}[task]
        assert "{" not in "".join(manner_of(config, task, decoder).turns(["a dog"], ["[X]"]))
