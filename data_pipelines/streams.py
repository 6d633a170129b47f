# SPDX-License-Identifier: Apache-2.0
"""The rows of one dataset, for ever: position -> row, the same whoever asks and whenever.

Each epoch is shuffled anew. A bad record is found where it is read and always counted; in its place stands
another record of the same epoch, found from the position alone. So a dataset keeps its weight in the mixture,
no position shifts, and a run that goes on elsewhere, with more or fewer hosts, knows where it is from one
number.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator

import grain

from data_pipelines.ahead import reading
from data_pipelines.collate import Row
from data_pipelines.draws import epoch
from data_pipelines.errors import DataError, machine_failed

_LISTED = 100  # different bad records of one dataset that the log names
_IN_A_ROW = 1000  # bad records in a row that end the run
_PAUSES = (1.0, 5.0, 25.0)  # seconds before a record is read again that the machine failed to read

logger = logging.getLogger(__name__)


class Stream:
    """Random access to a row for every position of a dataset that is repeated for ever.

    Args:
      source: has `len` and `[i]`.
      make: what turns a record of the source into a row.
      name: of the dataset, for the log.
      seed: of the order of records.
    """

    def __init__(self, source, make: Callable[..., Row], *, name: str, seed: int):
        self.name = name
        self._source, self._make = source, make
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
        self._seen: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._order)  # grain's "for ever"

    def __getitem__(self, position: int) -> Row:
        """The row at `position`; it counts the bad records found in its place as `skipped`.

        Raises:
          DataError: there is none, after all records of the dataset or `_IN_A_ROW` of them.
          OSError: the machine fails to read again and again. No other record is taken then: hosts that read
            the same rows would go on with different ones.
        """
        number, offset = divmod(position, len(self._source))
        first = number * len(self._source)
        skipped = 0
        with epoch(number):
            for other in itertools.islice(_places(offset, len(self._source)), _IN_A_ROW):
                index = self._order[first + other]
                try:
                    with reading(f"record {index} of the dataset {self.name!r}"):
                        row = self._read(index)
                except DataError as error:
                    last = error.at(record=index)
                    skipped += 1
                    self._report(last)
                except Exception as error:
                    error.add_note(f"record {index} of the dataset {self.name!r}")
                    raise
                else:
                    return dataclasses.replace(row, counters={**row.counters, "skipped": skipped})
        raise DataError(
            f"{skipped} records in a row of the dataset {self.name!r} cannot be used; the last one: {last}",
            remedy="repair the dataset or take it out of the mixture; if only one host says so, give that "
            "host the same files as the others",
        )

    def _read(self, index: int) -> Row:
        for pause in _PAUSES:
            try:
                return self._make(self._source[index])
            except OSError as error:
                if not machine_failed(error):
                    raise
                logger.warning("dataset %s, record %d: %s; tried again", self.name, index, error)
            time.sleep(pause)
        return self._make(self._source[index])

    def _report(self, error: DataError) -> None:
        """Names every bad record once, so that a bad file does not flood the log in each epoch."""
        text = str(error)
        if text in self._seen or len(self._seen) > _LISTED:
            return
        self._seen[text] = None
        if len(self._seen) > _LISTED:
            text = f"more than {_LISTED} bad records; further ones are only counted"
        logger.warning("dataset %s: skipped a record: %s", self.name, text)


def _places(offset: int, records: int) -> Iterator[int]:
    """All places of an epoch, each once: `offset`, then those from half an epoch later on.

    Its neighbour would stand twice in one batch.
    """
    yield offset
    for step in range(records):
        other = (offset + records // 2 + step) % records
        if other != offset:
            yield other
