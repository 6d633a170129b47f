# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead: never more than asked for, errors arrive, and a read that hangs is named."""

import logging
import threading
import time

import grain
import pytest

from data_pipelines.ahead import Ahead, reading, slow_reads, watch_reads
from data_pipelines.errors import StalledError


def numbers(function, **options):
    return iter(
        Ahead(grain.MapDataset.range(10).map(function).to_iter_dataset(grain.ReadOptions(0, 0)), **options)
    )


@pytest.mark.parametrize("count", [0, 2])
def test_makes_as_many_as_told(count):
    made = []
    iterator = numbers(lambda i: made.append(i) or i, count=count)
    assert not made
    assert next(iterator) == 0
    deadline = time.monotonic() + 5
    while len(made) < 1 + count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == list(range(1 + count))
    state = iterator.get_state()
    assert list(iterator) == list(range(1, 10))
    again = numbers(lambda i: i, count=count)
    next(again)
    again.set_state(state)
    assert list(again) == list(range(1, 10))
    again.close()


def test_errors_arrive_where_the_element_would():
    iterator = numbers(lambda i: 1 // (2 - i), count=2)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(iterator)


def test_a_read_that_hangs_is_named(caplog):
    there = threading.Event()

    def read(i):
        with reading(f"record {i} of the dataset 'far'"):
            if i == 2:
                there.wait()
        return i

    iterator = numbers(read, count=1, timeout=0.5)
    assert [next(iterator), next(iterator)] == [0, 1]
    with caplog.at_level(logging.WARNING), pytest.raises(StalledError) as caught:
        next(iterator)
    there.set()
    message = str(caught.value)
    assert "s, after 2 in this run; being read: record 2 of the dataset 'far' (for " in message
    assert "raise config.data.timeout (0.5 s)" in message
    assert 1 <= len(caplog.records) <= 9
    iterator.close()
    assert slow_reads() == ""


def test_worker_processes_name_slow_reads(caplog):
    with caplog.at_level(logging.WARNING):
        watch_reads(0.1)
        with reading("record 3 of the dataset 'far'"):
            deadline = time.monotonic() + 5
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.02)
    assert "still reads record 3 of the dataset 'far' (for 0 s)" in caplog.records[0].getMessage()
