# SPDX-License-Identifier: Apache-2.0
"""A file that torch.save wrote (2.13, tensors under `model`, a training script's arguments beside them)."""

import pathlib

import ml_dtypes
import numpy as np

from vllm2_jax.convert.checkpoint import open_file

FILE = pathlib.Path(__file__).parents[1] / "golden" / "weights" / "torch_save.pth"


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 1


def test_tensors_are_read_where_they_lie():
    tensors, wrong = open_file(FILE)
    want = {
        "full": numbers(3, 4),
        "whole": np.arange(5),
        "half": numbers(2, 2).astype(ml_dtypes.bfloat16),
        "parameter": numbers(4, 3),
        "view": numbers(6)[2:5],
    }
    assert tensors.keys() == want.keys()
    for name, array in want.items():
        got = np.asarray(tensors[name])
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array, name)
    assert [str(line) for line in wrong] == ["transposed: transposed in torch_save.pth: save it contiguous"]


def test_damaged_files_are_named(tmp_path):
    short = tmp_path / "short.pth"
    short.write_bytes(FILE.read_bytes()[:-200])
    code = tmp_path / "old.pth"
    code.write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    for path in (short, code):
        tensors, wrong = open_file(path)
        assert not tensors
        assert str(wrong[0]).startswith(f"truncated: {path.name}")
