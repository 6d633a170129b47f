# SPDX-License-Identifier: Apache-2.0
"""How fast a mixture delivers: `launch/benchmark.py data` prints it."""

import itertools
import time

import grain


def measure(dataset: grain.IterDataset, *, batches: int = 50, warmup: int = 5) -> dict[str, float]:
    """Times batches of `mixture.make_dataset` on this host.

    Args:
      dataset: what to time. With `prefetch=0, threads=0, workers=0` all work happens in this thread and the
        rate is that of one core.
      batches: how many to time.
      warmup: how many to make first, which also start workers and fill buffers.

    Returns:
      Per second: "batches/s", "examples/s" (segments, so packed examples count singly), "columns/s" (padding
      not counted), "MB/s"; and "filled", the share of columns that are not padding.
    """
    iterator = iter(dataset)
    for _ in itertools.islice(iterator, warmup):
        pass
    examples = columns = room = size = 0
    spent = 0.0
    for _ in range(batches):
        begin = time.perf_counter()
        element = next(iterator)
        spent += time.perf_counter() - begin
        for rows in element["batch"].values():
            segments = rows.inputs.segments
            examples += int(segments.max(-1).sum())
            columns += int((segments > 0).sum())
            room += segments.size
            size += sum(x.nbytes for x in vars(rows.inputs).values())
    iterator.close()  # ends worker processes
    return {
        "batches/s": batches / spent,
        "examples/s": examples / spent,
        "columns/s": columns / spent,
        "MB/s": size / spent / 1e6,
        "filled": columns / room,
    }
