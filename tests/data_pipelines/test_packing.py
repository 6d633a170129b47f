# SPDX-License-Identifier: Apache-2.0
"""Packed rows hold exactly the segments that went in. Order, resume and counting: test_mixture.py."""

import dataclasses

import grain
import numpy as np

from data_pipelines.collate import CollateSpec, TaskShape, blank_row
from data_pipelines.packing import pack
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from vllm2_jax.batch import IGNORE

LENGTH = 10


def rows(lengths):
    """One row for each length: its tokens count from 100 * its number, every second column is trained."""
    blank = blank_row(load_tokenizer(TINY_TOKENIZER), CollateSpec(LENGTH, 4, 1), TaskShape(rows=1, pack=True))
    made = []
    for number, n in enumerate(lengths, start=1):
        tokens, labels, segments = blank.tokens.copy(), blank.labels.copy(), blank.segments.copy()
        tokens[:n], segments[:n] = 100 * number + np.arange(n), 1
        labels[1:n:2] = tokens[1:n:2]
        counters = {**blank.counters, "skipped": number}
        row = dataclasses.replace(blank, tokens=tokens, labels=labels, segments=segments, counters=counters)
        made.append(row)
    return made, blank


def test_segments_come_out_as_they_went_in():
    made, blank = rows([4, 7, 3, 6, 10, 2])
    # Both bins take what fits first: 4 + 3 + 2 of 10 would need record 6 before record 4 closes the bins.
    packed = list(pack(grain.MapDataset.source(made).to_iter_dataset(), blank=blank, bins=2))
    layout = [
        [int(row.tokens[row.segments == s][0]) // 100 for s in range(1, row.segments.max() + 1)]
        for row in packed
    ]
    assert layout == [[1, 3], [2], [4, 6], [5]]
    for row, records in zip(packed, layout, strict=True):
        for segment, number in enumerate(records, start=1):
            (columns,) = np.nonzero(row.segments == segment)
            source = made[number - 1]
            n = len(columns)
            assert np.array_equal(columns, np.arange(columns[0], columns[0] + n))
            assert np.array_equal(row.tokens[columns], source.tokens[:n])
            assert np.array_equal(row.labels[columns], source.labels[:n])
            assert np.array_equal(row.positions[columns], np.arange(n))
        assert row.counters["skipped"] == sum(records)
        rest = row.segments == 0
        assert np.all(row.labels[rest] == IGNORE) and np.all(row.tokens[rest] == blank.tokens[0])
        assert row.tokens.shape == row.source.shape == (LENGTH,)
