# SPDX-License-Identifier: Apache-2.0
"""Every way a checkpoint can be damaged or a conversion can end: one list of all, nothing half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from tests.convert.small_official import INDEX, SHARDS, write
from vllm2_jax.convert import checkpoint
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.train import streaming
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.released import open_released, reopen


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


def test_what_has_to_be_on_this_machine_says_so(tmp_path, tensors):
    released = open_released(write(tmp_path / "official", tensors))
    streaming.write_orbax(released, tmp_path / "ours")
    export = Export.plan(tmp_path / "ours", released)
    for refuse in (
        open_released,
        reopen,
        lambda folder: streaming.write_orbax(released, folder),
        lambda folder: write_official(export, folder),
    ):
        with pytest.raises(ConversionError, match="gs://bucket/x is in a bucket: give a folder on this"):
            refuse("gs://bucket/x")


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


def test_full_disk_is_seen_before_writing(tmp_path, tensors, monkeypatch):
    released = open_released(write(tmp_path / "official", tensors))
    assert checkpoint.free_bytes(tmp_path / "not" / "there") <= shutil.disk_usage(tmp_path).total
    monkeypatch.setattr(streaming, "free_bytes", lambda folder: 1000)
    with pytest.raises(ConversionError, match="GB free"):
        streaming.write_orbax(released, tmp_path / "ours")
    assert not list(tmp_path.glob("ours*"))


def test_everything_that_is_wrong_is_one_list(tmp_path, tensors):
    """As `python -m launch.convert` prints it before it has written a byte."""
    wrong = dict(tensors)
    names = [key for key in sorted(tensors) if key.startswith("vis_encoder.")]
    del wrong[names[0]]
    wrong["vl_bridge.9.bias"] = np.zeros(3, np.float32)
    wrong[names[1]] = np.zeros((2, 3), ml_dtypes.bfloat16)
    wrong[names[2]] = np.zeros(tensors[names[2]].shape, np.int64)
    folder = write(tmp_path / "official", wrong, copies=[sorted(wrong)[0]])
    index = json.loads((folder / INDEX).read_text())
    held = {shard: [key for key in names[3:] if index["weight_map"][key] == shard] for shard in SHARDS}
    del index["weight_map"][held[SHARDS[0]][0]]
    index["weight_map"][held[SHARDS[0]][1]] = SHARDS[1]
    index["weight_map"] |= {"nowhere": SHARDS[0], "lost": "model-00003-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps(index))
    shard = folder / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ConversionError) as error:
        open_released(folder)
    _, *lines = str(error.value).splitlines()
    for start in (
        f"missing: {names[0]}",
        "unknown: vl_bridge.9.bias",
        f"misshapen: {names[1]}",
        f"wrong dtype: {names[2]}",
        f"duplicated: {sorted(wrong)[0]}",
        f"wrong index: {sorted(wrong)[0]} is in {SHARDS[0]}, {INDEX} says {SHARDS[1]}",
        f"truncated: {SHARDS[1]}",
        "missing file: model-00003-of-00002.safetensors",
        f"wrong index: {held[SHARDS[0]][0]} is in {SHARDS[0]}, {INDEX} does not name it",
        f"wrong index: {held[SHARDS[0]][1]} is in {SHARDS[0]}, {INDEX} says {SHARDS[1]}",
        "wrong index: nowhere",
    ):
        assert sum(line.strip().startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 11, lines
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path, tensors, text):
    folder = write(tmp_path / "official", tensors)
    (folder / INDEX).write_text(text)
    with pytest.raises(ConversionError, match=f"{INDEX} is no index of shards"):
        open_released(folder)


def test_a_name_twice_in_one_header(tmp_path, tensors):
    folder = write(tmp_path / "official", tensors)
    key, shard = "llm.model.norm.weight", folder / SHARDS[0]
    data = shard.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().rstrip()
    entry = json.dumps(json.loads(header)[sorted(tensors)[0]])
    header = f'{header[:-1]}, "{key}": {entry}, "{key}": {entry}}}'
    shard.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[8 + size :])
    with pytest.raises(ConversionError, match=f"duplicated: {key} twice in {SHARDS[0]}"):
        open_released(folder)


KILLED = """
import os, signal, sys
from vllm2_jax.train.released import open_released
from vllm2_jax.train.streaming import write_orbax
done = []
def report(size):
    done.append(size)
    if len(done) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
write_orbax(open_released(sys.argv[1]), sys.argv[2], report=report)
"""


def test_a_killed_run_is_restarted_by_the_same_command(tmp_path, tensors):
    folder = write(tmp_path / "official", tensors)
    ours = tmp_path / "ours"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(ours)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not ours.exists() and (tmp_path / "ours.partial").is_dir()
    (tmp_path / "ours.partial" / "0" / "junk").write_text("of the run that was killed")
    streaming.write_orbax(open_released(folder), ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official", "ours"]
    assert not (ours / "0" / "junk").exists()
    for entry, array in Export.plan(ours, reopen(ours)).tensors():
        np.testing.assert_array_equal(array, tensors[entry.name], entry.name)


def test_a_folder_that_lacks_leaves_is_not_exported(tmp_path, tensors):
    folder = write(tmp_path / "official", tensors)
    whole = open_released(folder)
    streaming.write_orbax(open_released(folder, ["vision", "llm", "regions"]), tmp_path / "ours")
    with pytest.raises(ConversionError) as error:
        Export.plan(tmp_path / "ours", whole)
    lacking = [path for path in whole.plan.leaves if path.startswith(("bridge/", "queries/"))]
    assert all(f"{path}: missing" in str(error.value) for path in lacking) and len(lacking) > 5
    shutil.rmtree(tmp_path / "ours" / "0")
    with pytest.raises(FileNotFoundError, match="no weights in"):
        Export.plan(tmp_path / "ours", whole)
