# SPDX-License-Identifier: Apache-2.0
import pytest

from data_pipelines.collate import CollateSpec
from data_pipelines.measure import measure
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER


def test_rates_agree_with_each_other():
    dataset = make_dataset(
        {"chat": {"rows": 3, "tiles": 1, "datasets": {"synthetic": {"task": "chat"}}}},
        tokenizer=load_tokenizer(TINY_TOKENIZER),
        spec=CollateSpec(length=96, tile_size=28, tokens_per_tile=4),
        groups=2,
        seed=0,
        prefetch=0,
    )
    rates = measure(dataset, batches=3, warmup=1)
    assert rates["examples/s"] == pytest.approx(6 * rates["batches/s"])
    assert 0.4 < rates["filled"] < 0.8
    assert rates["columns/s"] == pytest.approx(6 * 96 * rates["filled"] * rates["batches/s"])
    # tokens, source, index, positions, segments and the tiles of six rows
    assert rates["MB/s"] == pytest.approx(rates["batches/s"] * 6 * (5 * 4 * 96 + 28 * 28 * 3) / 1e6)
