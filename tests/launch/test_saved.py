# SPDX-License-Identifier: Apache-2.0
"""Converted weights are asked: only what is wanted is loaded, in the precision that is stored or wanted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.mixtures import HELDOUT
from launch import build, evaluate, generate, predict
from launch.answer import AnswerConfig
from launch.saved import saved_config, saved_model, saved_run
from tests.launch import small_decoders
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.train import checkpoint
from vllm2_jax.train.streaming import LazyLeaf, weights_folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder as conversion writes it: bfloat16 but for one leaf, more rows of vocabulary than tokens."""
    config = small_decoders.config()
    config.model.llm.vocab = 900
    run = build.build_run(config)
    leaves, _ = flatten_paths(build.rebuild(run, run.plan.abstract))
    rng = np.random.default_rng(0)

    def lazy(path, leaf):
        dtype = np.dtype(np.float32 if path == "llm/norm/scale" else jnp.bfloat16)
        array = rng.normal(path.endswith("scale"), 0.3, leaf.shape).astype(dtype)
        return LazyLeaf(leaf.shape, dtype, lambda rows: array[rows])

    folder = tmp_path_factory.mktemp("saved") / "converted"
    with weights_folder(folder, {path: lazy(path, leaf) for path, leaf in leaves.items()}) as part:
        with checkpoint.ocp.Checkpointer(checkpoint.ocp.JsonCheckpointHandler()) as writer:
            stored = json.loads(config.to_json_best_effort())
            writer.save(part / "0" / "config", args=checkpoint.ocp.args.JsonSave(stored))
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_the_dtype_is_that_of_the_folder_or_as_asked(workdir, dtype):
    run = saved_run(workdir, "fsdp", ["grounding_dino"])
    leaves, _ = flatten_paths(saved_model(workdir, run, dtype))
    assert {path.split("/")[1] for path in leaves if path.startswith("decoders/")} == {"grounding_dino"}
    for path, leaf in leaves.items():
        own = jnp.float32 if path == "llm/norm/scale" else jnp.bfloat16
        assert leaf.dtype == (dtype or own), path
    assert not leaves["llm/embed"].sharding.is_fully_replicated


def test_a_wrong_folder_is_named_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights in .*typo.*; give the workdir of a run"):
        saved_config(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_nothing_is_made_before_it_is_loaded(workdir, monkeypatch):
    """A model of random numbers would take twice the memory, or four times that of bfloat16."""
    before, made = len(jax.live_arrays()), []
    load = checkpoint.ocp.PyTreeCheckpointer.restore

    def restore(self, *args, **kwargs):
        made.append(len(jax.live_arrays()) - before)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "restore", restore)
    saved_model(workdir, saved_run(workdir, "single", []))
    assert len(made) == 1 and made[0] <= 0


def test_questions_need_no_decoder(workdir, picture, monkeypatch, capsys):
    """A random model chooses all ids alike, most of which the tokenizer has not: they are never chosen."""
    loaded = []
    monkeypatch.setattr(generate, "saved_model", lambda *args: loaded.append(saved_model(*args)) or loaded[0])
    settings = AnswerConfig(max_new=4, temperature=9.0)
    generate.answer(workdir, ["What is it?", "And?"], [str(picture)], [], settings, measure=True)
    assert not loaded[0].decoders
    out = capsys.readouterr().out
    assert out.startswith("load: ") and out.count("\nanswer: ") == 2 and "GiB" in out


def test_a_task_loads_its_decoder(workdir, picture, tmp_path, monkeypatch, capsys):
    argv = ["predict", "--workdir", str(workdir), "--image", str(picture), "--task", "det", "--measure"]
    monkeypatch.setattr("sys.argv", [*argv, "--classes", "circle, square", "--out", str(tmp_path / "out")])
    assert predict.main() == 0
    assert (tmp_path / "out" / "picture.png").is_file()
    out = capsys.readouterr().out
    assert "load: " in out and "compile and look: " in out


def test_a_drawing_never_replaces_its_picture(workdir, picture, monkeypatch, capsys):
    before = picture.read_bytes()
    argv = ["predict", "--workdir", str(workdir), "--image", str(picture), "--task", "det"]
    monkeypatch.setattr("sys.argv", [*argv, "--classes", "circle", "--out", str(picture.parent)])
    assert predict.main() == 2
    assert "name another folder with --out" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_a_folder_is_scored_on_sets_with_the_decoders_they_need(workdir, capsys):
    pose = {**small_decoders.tasks("heldout")["pose"], "metrics": ("keypoints",)}
    scores = evaluate.evaluate_sets(workdir, {"pose/small": pose}, "", examples=3, pictures=2)
    assert 0 <= scores["pose/small/keypoints/AP"] <= 1
    written = json.loads((workdir / "evaluation.json").read_text())
    assert written == {"trained": scores}
    assert "pose/small/keypoints/AP50" in capsys.readouterr().out
    assert (workdir / "report.html").read_text().count("data:image/png;base64") == 2 * 3
    with pytest.raises(ValueError, match="lacks what --sets ask for: stable_diffusion"):
        evaluate.evaluate_sets(workdir, {"pose/small": {**pose, "decoder": "stable_diffusion"}}, "")


def test_unknown_decoders_are_named(workdir):
    with pytest.raises(ValueError, match="no decoder unheard_of; there are grounding_dino, unipose"):
        saved_run(workdir, "single", ["unheard_of"])


def test_sets_are_asked_for_one_by_one_or_by_kind():
    assert set(evaluate.published(["pose/coco", "detection"])) == {
        "pose/coco",
        *(f"detection/{task}" for task in HELDOUT["detection"]),
    }
    with pytest.raises(ValueError, match=r"--sets=pose/cocoo: no such set; there are detection, .*pose/coco"):
        evaluate.published(["pose/cocoo"])
