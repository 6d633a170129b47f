# SPDX-License-Identifier: Apache-2.0
"""Bad records: found where they are read, left out where the order of records is known, always counted.

Reading returns the error instead of raising it. Behind the reader, `SkipBad` takes the next record of the
same dataset in its place, so a dataset keeps its weight in the mixture. It has no state of its own: the
position of the records is all that a checkpoint needs.
"""

import dataclasses
import logging
from collections.abc import Callable

import grain

from data_pipelines.collate import Row
from data_pipelines.draws import epoch
from data_pipelines.errors import DataError

_LISTED = 100  # different bad records of one dataset that the log names
_IN_A_ROW = 1000  # bad records in a row that end the run

logger = logging.getLogger(__name__)


class Reader:
    """A source's rows: a row of each record, or the DataError that explains why there is none.

    Args:
      source: has `len` and `[i]`.
      make: what turns a record of the source into a row.
      blanks: rows of padding that follow the last record.
      blank: that row.
    """

    def __init__(self, source, make: Callable[..., Row], *, blanks: int = 0, blank: Row | None = None):
        self.source, self.make, self.blanks, self.blank = source, make, blanks, blank

    def __len__(self) -> int:
        return len(self.source) + self.blanks

    def read(self, position: int, index: int) -> Row | DataError | None:
        """The row of record `index`, which stands at `position` of the stream that repeats all records."""
        if index >= len(self.source):
            return self.blank
        try:
            with epoch(position // len(self)):
                return self.make(self.source[index])
        except DataError as error:
            return error.at(record=index)


class SkipBad(grain.IterDataset):
    """The rows of a reader without its errors. Each row counts the errors in front of it as `skipped`.

    Args:
      rows: a dataset over a `Reader`.
      name: of the dataset, for the log.
      records: how many records it has.
      blank: if given, an error becomes this row instead of the next record: in evaluation all hosts have to
        see the same number of rows.
    """

    def __init__(self, rows: grain.IterDataset, *, name: str, records: int, blank: Row | None = None):
        super().__init__(rows)
        self.name, self.limit, self.blank = name, min(records, _IN_A_ROW), blank

    def __iter__(self) -> grain.DatasetIterator:
        return _SkipBadIterator(iter(self._parent), self)


class _SkipBadIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, dataset: SkipBad):
        super().__init__(parent)
        self._dataset = dataset
        self._seen: set[str] = set()

    def __next__(self) -> Row:
        skipped = 0
        while isinstance(row := next(self._parent), DataError):
            self._report(row)
            skipped += 1
            if self._dataset.blank is not None:
                row = self._dataset.blank
                break
            if skipped >= self._dataset.limit:
                raise DataError(
                    f"{skipped} records in a row of the dataset {self._dataset.name!r} cannot be used; "
                    f"the last one: {row}",
                    remedy="repair the dataset or take it out of the mixture",
                ) from row
        return dataclasses.replace(row, counters={**row.counters, "skipped": skipped})

    def _report(self, error: DataError) -> None:
        """Names every bad record once, so that a bad file does not flood the log in each epoch."""
        text = str(error)
        if text in self._seen or len(self._seen) > _LISTED:
            return
        self._seen.add(text)
        if len(self._seen) > _LISTED:
            text = f"more than {_LISTED} bad records; further ones are only counted"
        logger.warning("dataset %s: skipped a record: %s", self._dataset.name, text)

    def get_state(self) -> dict:
        return self._parent.get_state()

    def set_state(self, state: dict) -> None:
        self._parent.set_state(state)
