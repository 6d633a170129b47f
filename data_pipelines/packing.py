# SPDX-License-Identifier: Apache-2.0
"""Several language-only examples in one row, kept apart by segment ids, positions starting again in each.

Grain's first-fit packing does the work: its state is the state of the records plus a place among the packed
rows, so a resumed run packs the same rows again.
"""

import dataclasses

import grain
import numpy as np

from data_pipelines.collate import Row
from vllm2_jax.batch import IGNORE


def pack(rows: grain.IterDataset, *, blank: Row, bins: int) -> grain.IterDataset:
    """Rows that each hold as many of the given rows as fit.

    Args:
      rows: `collate.Row`s with one segment each, text only.
      blank: a row of padding of the same length.
      bins: rows filled side by side; more leave less padding, and replay more records when a run resumes.
    """
    length, padding = len(blank.tokens), int(blank.tokens[0])
    packed = grain.experimental.FirstFitPackIterDataset(
        rows.map(_open),
        length_struct={"tokens": length, "labels": length},
        padding_struct={"tokens": padding, "labels": IGNORE},
        num_packing_bins=bins,
        shuffle_bins=False,  # the records are shuffled already
        meta_features=("skipped",),
    )
    return packed.map(lambda element: _close(element, blank))


def _open(row: Row) -> dict[str, np.ndarray | int]:
    n = int(np.count_nonzero(row.segments))
    return {"tokens": row.tokens[:n], "labels": row.labels[:n], "skipped": row.counters["skipped"]}


def _close(element: dict[str, np.ndarray], blank: Row) -> Row:
    return dataclasses.replace(
        blank,
        tokens=element["tokens"],
        labels=element["labels"],
        positions=element["tokens_positions"],
        segments=element["tokens_segment_ids"],
        counters={**blank.counters, "skipped": int(sum(element["skipped"]))},
    )
