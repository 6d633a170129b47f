# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint in the official layout: converted, loaded, exported."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import build
from launch.released import run_config
from launch.saved import saved_config
from tests import fake_checkpoint
from tests.convert.small_official import write
from tests.train.bucket import bucket, environment
from vllm2_jax.convert import checkpoint, visionllmv2
from vllm2_jax.convert.official import model_config
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.pretrained import download, from_pretrained
from vllm2_jax.sharding.mesh import make_mesh
from vllm2_jax.sharding.strategies import STRATEGIES
from vllm2_jax.train import exporting, streaming
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.released import open_released, reopen

ROOT = pathlib.Path(__file__).parents[2]


def test_there_and_back_is_equal_bit_by_bit(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))
    streaming.write_orbax(released, tmp_path / "ours")
    export = Export.plan(tmp_path / "ours", reopen(tmp_path / "ours"))
    write_official(export, tmp_path / "back", shard_bytes=20_000)
    back = checkpoint.open_checkpoint(tmp_path / "back")
    assert back.keys() == tensors.keys()
    for key, want in tensors.items():
        got = np.asarray(back[key])
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.view(np.int16), np.ascontiguousarray(want).view(np.int16), key)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert (tmp_path / "back" / "config.json").is_file()


def test_training_starts_from_converted_weights(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))
    streaming.write_orbax(released, tmp_path / "ours", dtype="float32")
    model = jax.eval_shape(lambda: VisionLLMv2(released.config, rngs=Rngs(0)))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), model)
    loaded = load_weights(tmp_path / "ours", model)
    got = visionllmv2.export(loaded, released.config)
    for key, want in tensors.items():
        np.testing.assert_array_equal(got[key], want.astype(np.float32), key)


PEFT = "llm.base_model.model."


@pytest.fixture(scope="module")
def adapted(tensors):
    """The same checkpoint with adapters, in the names that peft 0.7 gives."""
    rng = np.random.default_rng(1)
    out = {}
    for key, array in tensors.items():
        if not key.startswith("llm."):
            out[key] = array
            continue
        name = PEFT + key.removeprefix("llm.")
        if re.search(r"\.(q|k|v|o|up|down)_proj\.", key):
            stem = name.removesuffix(".weight")
            name = f"{stem}.base_layer.weight"
            for part, shape in (("A", (2, array.shape[1])), ("B", (array.shape[0], 2))):
                values = rng.normal(size=shape).astype(ml_dtypes.bfloat16)
                out[f"{stem}.lora_{part}.default.weight"] = values
        out[name] = array
    return out


def test_adapters_keep_their_names_on_the_way(tmp_path, adapted):
    released = open_released(write(tmp_path / "official", adapted))
    assert released.config.llm.lora is not None and not released.config.llm.lora.adapts("gate")
    streaming.write_orbax(released, tmp_path / "ours")
    write_official(Export.plan(tmp_path / "ours", reopen(tmp_path / "ours")), tmp_path / "back")
    back = checkpoint.open_checkpoint(tmp_path / "back")
    assert back.keys() == adapted.keys()
    for key, want in adapted.items():
        np.testing.assert_array_equal(np.asarray(back[key]), want, key)


def test_adapters_are_merged_in_either_direction(tmp_path, tensors, adapted):
    released = open_released(write(tmp_path / "official", adapted))
    streaming.write_orbax(released, tmp_path / "merged", merge_lora=True)
    streaming.write_orbax(released, tmp_path / "apart")
    first = Export.plan(tmp_path / "merged", reopen(tmp_path / "merged"))
    second = Export.plan(tmp_path / "apart", reopen(tmp_path / "apart"), merge_lora=True)
    one, other = ({entry.name: array for entry, array in way.tensors()} for way in (first, second))
    assert one.keys() == other.keys() == tensors.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], key)
        stem = PEFT + key.removeprefix("llm.").removesuffix(".weight")
        want = tensors[key].astype(np.float32)
        if f"{stem}.lora_A.default.weight" in adapted:  # alpha is twice the rank
            a, b = (adapted[f"{stem}.lora_{x}.default.weight"].astype(np.float32) for x in "AB")
            want = want + 2 * b @ a
            assert not np.array_equal(array, tensors[key])
        np.testing.assert_allclose(array.astype(np.float32), want, rtol=1e-2, atol=1e-2, err_msg=key)
    with pytest.raises(ConversionError, match="no adapters to merge"):
        streaming.write_orbax(reopen(tmp_path / "merged"), tmp_path / "again", merge_lora=True)


def test_large_leaves_go_layer_by_layer(tmp_path, tensors, monkeypatch):
    for module in (streaming, exporting):
        monkeypatch.setattr(module, "CHUNK_BYTES", 600)
    monkeypatch.setattr(streaming, "BATCH_BYTES", 1200)
    released = open_released(write(tmp_path / "official", tensors))
    pieces = []
    streaming.write_orbax(released, tmp_path / "ours", report=pieces.append)
    assert len(pieces) > len(released.plan.leaves) and sum(pieces) == released.size
    for entry, array in Export.plan(tmp_path / "ours", released).tensors():
        np.testing.assert_array_equal(array, tensors[entry.name], entry.name)


@pytest.mark.parametrize("place", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_run_is_exported_like_the_weights_it_began_with(tmp_path, tensors, place):
    released = open_released(write(tmp_path / "official", tensors))
    streaming.write_orbax(released, tmp_path / "ours")
    state = tmp_path / "ours" / "0"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.move(state, tmp_path / "run" / "checkpoints" / "7")
    with bucket() as server:
        source = str(tmp_path / "run")
        if place == "bucket":
            source = "gs://runs/run"
            for path in filter(pathlib.Path.is_file, (tmp_path / "run").rglob("*")):
                server.put(str(path.relative_to(tmp_path)), path.read_bytes())
        done = subprocess.run(
            [
                *(sys.executable, "-m", "launch.convert", "--export", "--from", source),
                *("--like", str(tmp_path / "ours"), "--to", str(tmp_path / "back")),
            ],
            cwd=ROOT,
            env=os.environ | environment(server),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert checkpoint.open_checkpoint(tmp_path / "back").keys() == tensors.keys()


def test_converted_weights_can_be_asked_like_a_run(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))
    config = run_config(released.config)
    stored = json.loads(config.to_json_best_effort())
    streaming.write_orbax(released, tmp_path / "ours", run_config=stored)
    assert saved_config(tmp_path / "ours").to_dict() == stored
    assert reopen(tmp_path / "ours").config == released.config


def test_every_size_of_a_model_comes_back_from_its_config():
    listed = fake_checkpoint.small()
    sizes = model_config(fake_checkpoint.CONFIG_SMALL, {name: shape for name, (shape, _) in listed.items()})
    config = json.loads(run_config(sizes).to_json_best_effort())
    assert build.model_config(ConfigDict(config), load_tokenizer(TINY_TOKENIZER)) == sizes


@pytest.mark.parametrize("cached", [False, True])
def test_a_repository_of_the_hub(tmp_path, tensors, monkeypatch, cached):
    """Without a network: from the cache of earlier downloads, or an error that says what to do."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    strategy = STRATEGIES["single"]
    mesh = make_mesh(strategy, jax.devices()[:1], {})
    if not cached:
        with pytest.raises(ConversionError, match="some/model is no folder, and the hub does not give it"):
            VisionLLMv2.from_pretrained("some/model", mesh=mesh, strategy=strategy)
        return
    place, commit = tmp_path / "hub" / "models--some--model", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    write(place / "snapshots" / commit, tensors)
    model = VisionLLMv2.from_pretrained("some/model", mesh=mesh, strategy=strategy, dtype="float32")
    head = tensors["llm.lm_head.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.llm.head[...], head.T)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_is_downloaded(tmp_path, tensors, monkeypatch, kind):
    """Of both kinds of weights one; the download itself is the hub's: it resumes and shows its progress."""
    import huggingface_hub

    asked = []

    def snapshot_download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        if f"*.{kind}" in allow_patterns:
            (folder / f"model.{kind}").touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download("some/model") == tmp_path / "snapshot"
    wanted = ["*.safetensors"] + ["*.bin"] * (kind == "bin")
    assert asked == [("some/model", ["*.json", "*.model", weights]) for weights in wanted]
    shutil.rmtree(tmp_path / "snapshot")
    kind = "h5"
    with pytest.raises(ConversionError, match="neither safetensors nor"):
        download("some/model")


def test_from_pretrained_of_a_repository(tmp_path, tensors, monkeypatch):
    import huggingface_hub

    folder = write(tmp_path / "snapshot", tensors)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    strategy = STRATEGIES["fsdp"]
    mesh = make_mesh(strategy, jax.devices()[:2], {})
    model = VisionLLMv2.from_pretrained("some/model", mesh=mesh, strategy=strategy, decoders=())
    np.testing.assert_array_equal(model.llm.head[...], tensors["llm.lm_head.weight"].T)
    with pytest.raises(ConversionError, match="has no decoder unipose; it has none"):
        VisionLLMv2.from_pretrained("some/model", mesh=mesh, strategy=strategy, decoders=["unipose"])


def test_components_take_a_part(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors), ["bridge", "queries"])
    assert {path.split("/")[0] for path in released.plan.leaves} == {"bridge", "queries"}
    with pytest.raises(ConversionError, match="no component wheel"):
        open_released(tmp_path / "official", ["wheel"])


def test_from_pretrained_reads_both_layouts_into_shards(tmp_path, tensors):
    strategy = STRATEGIES["fsdp"]
    mesh = make_mesh(strategy, jax.devices()[:2], {})
    streaming.write_orbax(open_released(write(tmp_path / "official", tensors)), tmp_path / "ours")
    for name in ("official", "ours"):
        model = from_pretrained(tmp_path / name, mesh=mesh, strategy=strategy)
        got = visionllmv2.export(model, model.config)
        for key, want in tensors.items():
            np.testing.assert_array_equal(got[key], want, key)
        assert not model.llm.embed[...].sharding.is_fully_replicated
