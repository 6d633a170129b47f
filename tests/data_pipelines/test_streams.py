# SPDX-License-Identifier: Apache-2.0
"""What a stream does when the machine, not a record, fails to read."""

import errno
from types import SimpleNamespace

import pytest

from data_pipelines import streams
from data_pipelines.collate import CollateSpec, make_row
from data_pipelines.example import Example
from data_pipelines.mixture import task_shapes
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER

SPEC = CollateSpec(length=96, tile_size=28, tokens_per_tile=4)


class Mount:
    """Ten records; reading one of them fails some times."""

    def __init__(self, number, times, code):
        self.number, self.left, self.code = number, times, code

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == self.number and self.left:
            self.left -= 1
            raise OSError(self.code, "the mount hangs")
        return Example("numbers", "numbers.json", str(index), [("human", ""), ("gpt", f"star {index}")])


@pytest.fixture
def pauses(monkeypatch):
    # A clock of this module alone: background threads of other tests' libraries sleep, too.
    found = []
    monkeypatch.setattr(streams, "time", SimpleNamespace(sleep=found.append))
    return found


def rows(source):
    (shape,) = task_shapes({"t": {"rows": 1, "datasets": {"numbers": {}}}}).values()
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    stream = streams.Stream(
        source, lambda example: make_row(example, tokenizer, SPEC, shape), name="t/numbers", seed=0
    )
    made = [stream[position] for position in range(10)]
    return [row.tokens.tolist() for row in made], sum(row.counters["skipped"] for row in made)


def test_a_read_that_failed_is_tried_again(pauses, caplog):
    assert rows(Mount(3, 2, errno.EIO)) == rows(Mount(3, 0, errno.EIO))
    assert pauses == [1.0, 5.0]
    assert "dataset t/numbers, record 3: [Errno 5] the mount hangs; tried again" in caplog.text


def test_no_other_record_stands_in_for_one_the_machine_cannot_read(pauses):
    with pytest.raises(OSError, match="the mount hangs") as caught:
        rows(Mount(3, 4, errno.ESTALE))
    assert caught.value.__notes__ == ["record 3 of the dataset 't/numbers'"]
    assert pauses == [1.0, 5.0, 25.0]


def test_other_errors_are_not_tried_again(pauses):
    with pytest.raises(PermissionError):
        rows(Mount(3, 1, errno.EACCES))
    assert pauses == []
