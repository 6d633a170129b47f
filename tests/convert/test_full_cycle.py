# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint in the official layout: converted, loaded, exported; and every way it can be damaged."""

import errno
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
from safetensors.numpy import save_file

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import build
from launch.generate import saved_config
from launch.released import run_config
from tests import fake_checkpoint
from vllm2_jax.convert import checkpoint, visionllmv2
from vllm2_jax.convert.official import model_config
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.pretrained import from_pretrained
from vllm2_jax.sharding.mesh import make_mesh
from vllm2_jax.sharding.strategies import STRATEGIES
from vllm2_jax.train import exporting, streaming
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.released import open_released, reopen

CONFIG = {
    "vis_encoder_config": {
        **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
        **{"image_size": 28, "patch_size": 14},
    },
    "llm_config": {
        **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
        **{"num_key_value_heads": 2, "vocab_size": 40, "rms_norm_eps": 1e-5},
    },
    "vis_output_layer": -2,
    "vl_bridge_type": "mlp2x_gelu",
    "num_embs": 4,
    "num_embs_gen": 8,
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tensors():
    """Official names and random bfloat16 arrays."""
    config = model_config(CONFIG, {"llm.model.embed_tokens.weight": (40, 24)})
    leaves, treedef = flatten_paths(jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0))))
    rng = np.random.default_rng(0)
    model = jax.tree.unflatten(
        treedef, [rng.normal(size=leaf.shape).astype(ml_dtypes.bfloat16) for leaf in leaves.values()]
    )
    return visionllmv2.export(model, config)


def write(folder: pathlib.Path, tensors, copies=()):
    """Two shards, an index and a config; `copies` are in both shards."""
    folder.mkdir()
    names = sorted(tensors)
    halves = (names[::2], [*names[1::2], *copies])
    for shard, keys in zip(SHARDS, halves, strict=True):
        save_file({key: np.ascontiguousarray(tensors[key]) for key in keys}, folder / shard)
    where = {key: shard for shard, keys in zip(SHARDS, halves, strict=True) for key in keys}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


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


def test_one_error_lists_every_misfit(tmp_path, tensors):
    wrong = dict(tensors)
    del wrong["vl_bridge.0.bias"]
    wrong["vl_bridge.9.bias"] = np.zeros(3, np.float32)
    wrong["llm.model.norm.weight"] = np.zeros(25, np.float32)
    wrong["llm.lm_head.weight"] = np.zeros((40, 24), np.int64)
    with pytest.raises(ConversionError) as error:
        open_released(write(tmp_path / "official", wrong))
    text = str(error.value)
    for line in (
        "missing: vl_bridge.0.bias",
        "unknown: vl_bridge.9.bias",
        "misshapen: llm.model.norm.weight",
        "wrong dtype: llm.lm_head.weight",
    ):
        assert line in text


def test_damaged_files_are_listed_together(tmp_path, tensors):
    twice = sorted(tensors)[0]
    folder = write(tmp_path / "official", tensors, copies=[twice])
    shard = folder / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ConversionError) as error:
        checkpoint.open_checkpoint(folder)
    assert f"truncated: {SHARDS[1]}" in str(error.value)
    assert f"duplicated: {twice}" in str(error.value)


def test_index_that_names_another_tensor(tmp_path, tensors):
    folder = write(tmp_path / "official", tensors)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["nowhere"] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="wrong index: nowhere"):
        checkpoint.open_checkpoint(folder)


def test_interrupted_run_leaves_nothing_and_can_be_repeated(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))

    def stop(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.write_orbax(released, tmp_path / "ours", report=stop)
    assert not list(tmp_path.glob("ours*"))
    streaming.write_orbax(released, tmp_path / "ours")
    with pytest.raises(ConversionError, match="exists"):
        streaming.write_orbax(released, tmp_path / "ours")


def test_damage_and_misfits_are_one_list(tmp_path, tensors):
    wrong = dict(tensors) | {f"vl_bridge.{i}.bias": np.zeros(3, np.float32) for i in (98, 99)}
    del wrong["llm.lm_head.weight"]
    folder = write(tmp_path / "official", wrong)
    (folder / SHARDS[1]).write_bytes(b"x")
    with pytest.raises(ConversionError) as error:
        open_released(folder)
    lines = str(error.value).splitlines()[1:]
    assert any(line.startswith(f"  truncated: {SHARDS[1]}") for line in lines)
    # What the broken shard holds is not said to be missing; the tensor that is in no shard is.
    missing = [line for line in lines if line.startswith("  missing")]
    assert len(missing) == 1 and "llm.lm_head.weight" in missing[0]
    assert sum("unknown: vl_bridge.9" in line for line in lines) == 1  # one of the two can be seen


@pytest.mark.parametrize(
    "full", [OSError(errno.ENOSPC, "x"), ValueError(f"tensorstore: {os.strerror(errno.ENOSPC)}")]
)
def test_disk_that_fills_up(tmp_path, tensors, full):
    released = open_released(write(tmp_path / "official", tensors))

    def report(size: int) -> None:
        raise full

    with pytest.raises(ConversionError, match="is full"):
        streaming.write_orbax(released, tmp_path / "ours", report=report)
    streaming.write_orbax(released, tmp_path / "ours")
    with pytest.raises(ConversionError, match="is full"):
        write_official(Export.plan(tmp_path / "ours", released), tmp_path / "back", report=report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official", "ours"]


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


def test_a_run_is_exported_like_the_weights_it_began_with(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))
    streaming.write_orbax(released, tmp_path / "ours")
    state = tmp_path / "ours" / "0"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.move(state, tmp_path / "run" / "checkpoints" / "7")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.convert", "--export", "--from", str(tmp_path / "run")),
            *("--like", str(tmp_path / "ours"), "--to", str(tmp_path / "back")),
        ],
        cwd=ROOT,
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


def test_full_disk_is_seen_before_writing(tmp_path, tensors, monkeypatch):
    released = open_released(write(tmp_path / "official", tensors))
    assert checkpoint.free_bytes(tmp_path / "not" / "there") <= shutil.disk_usage(tmp_path).total
    monkeypatch.setattr(streaming, "free_bytes", lambda folder: 1000)
    with pytest.raises(ConversionError, match="GB free"):
        streaming.write_orbax(released, tmp_path / "ours")
    assert not list(tmp_path.glob("ours*"))


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
