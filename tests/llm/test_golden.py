# SPDX-License-Identifier: Apache-2.0
"""InternLM2, adapters and generation against tensors of the official code."""

import importlib
import pathlib

import pytest

from tests.parity import compare

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "core"

# Part -> comparisons it makes, so that a part that yields nothing fails.
PARTS = {"internlm2": 9, "lora": 10, "generation": 53}


@pytest.mark.parametrize("part", PARTS)
def test_equals_the_official_code(part):
    results = [compare(*case) for case in importlib.import_module(f"tests.parity.{part}").cases(FOLDER)]
    assert len(results) == PARTS[part]
    wrong = [str(result) for result in results if not result.ok]
    assert not wrong, "\n".join(wrong)
