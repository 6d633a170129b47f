# SPDX-License-Identifier: Apache-2.0
"""Records by number, whatever file they lie in: JSON, JSON lines, tar shards, Parquet tables.

A record is a dict. Pictures in it are paths, encoded bytes, or `{"bytes": ..., "path": ...}` as the datasets
library writes them. Several files are given as a pattern with `*` and follow each other in order of name.
"""

import bisect
import functools
import glob
import itertools
import json
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import UInt8
from pyarrow import parquet

from data_pipelines.errors import DataError, machine_failed
from data_pipelines.images import load_image
from data_pipelines.records import read_records

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_ROW_GROUPS = 4  # decoded row groups of a table that stay in memory, in each process


def open_records(path: str | pathlib.Path) -> Sequence[dict]:
    """The records of one or several files.

    Args:
      path: a `.json`, `.jsonl`, `.tar` or `.parquet` file, or a pattern with `*`.

    Raises:
      DataError: no such file, an unknown suffix, or a file that is damaged or has no records.
    """
    text = str(path)
    files = sorted(glob.glob(text)) if "*" in text else [text]
    if not files:
        raise DataError("no file matches the pattern", file=text, remedy="check the path in the config")
    readers = {".json": read_records, ".jsonl": read_records, ".tar": TarRecords, ".parquet": TableRecords}
    stores = []
    for file in files:
        suffix = pathlib.Path(file).suffix
        if suffix not in readers:
            raise DataError(
                f"unknown kind of file {suffix!r}", file=file, remedy=f"there are {', '.join(readers)}"
            )
        stores.append(readers[suffix](file))
        if not stores[-1]:
            raise DataError("the file has no records", file=file, remedy="take it out or write it again")
    return stores[0] if len(stores) == 1 else Joined(stores)


class Joined(Sequence):
    """Several stores, one after the other."""

    def __init__(self, stores: Sequence[Sequence[dict]]):
        self.stores = stores
        self.ends = list(itertools.accumulate(map(len, stores)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index):
        number = bisect.bisect_right(self.ends, index)
        return self.stores[number][index - (self.ends[number - 1] if number else 0)]


class TarRecords(Sequence):
    """Samples of a tar shard as WebDataset lays them out: neighbours with one name up to its first dot.

    `000.jpg`, `000.txt` and `000.json` make one record: the picture is its field "image", the text "caption",
    the object's fields are fields. `000.input.jpg` is the field "input". The shard is indexed once, by
    its headers; a record is read when it is asked for.
    """

    def __init__(self, file: str):
        self.file = file
        self.samples: list[tuple[str, list[tuple[str, int, int]]]] = []
        end = 0  # of the last member, filled up to whole blocks
        try:
            with tarfile.open(file) as shard:
                for member in shard:
                    end = member.offset_data - -member.size // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                    if member.isfile():
                        self._add(member)
        except FileNotFoundError as error:
            raise DataError("no such file", file=file, remedy="check the path in the config") from error
        except tarfile.TarError as error:
            raise self._short(str(error)) from error
        with open(file, "rb") as content:
            content.seek(end)
            # Python reads what there is of an archive; its end is a block of zeros.
            if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise self._short("it has no end")

    def _short(self, reason: str) -> DataError:
        return DataError(
            f"the shard is damaged or incomplete ({reason})", file=self.file, remedy="fetch it again"
        )

    def _add(self, member: tarfile.TarInfo) -> None:
        folder, _, name = member.name.rpartition("/")
        key, _, kind = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        if not self.samples or self.samples[-1][0] != key:
            self.samples.append((key, []))
        self.samples[-1][1].append((kind.lower(), member.offset_data, member.size))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        key, parts = self.samples[index]
        record: dict[str, Any] = {"id": key}
        with open(self.file, "rb") as shard:
            for kind, at, length in parts:
                shard.seek(at)
                record |= self._field(key, kind, shard.read(length))
        return record

    def _field(self, key: str, kind: str, content: bytes) -> dict[str, Any]:
        name, _, suffix = kind.rpartition(".")
        if suffix in PICTURES:
            return {name or "image": content}
        try:
            if suffix == "json":
                value = json.loads(content)
                return value if not name and isinstance(value, dict) else {name or "json": value}
            if suffix == "txt":
                return {name or "caption": content.decode()}
        except ValueError as error:  # not JSON, or not UTF-8
            raise DataError(
                f"{kind} cannot be read ({error})", file=self.file, record=key, remedy="repair the sample"
            ) from error
        return {kind: content}


class TableRecords(Sequence):
    """Rows of a Parquet table; a row group is decoded as a whole, the last few stay."""

    def __init__(self, file: str):
        self.file = file
        try:
            self.groups = parquet.read_metadata(file)
        except FileNotFoundError as error:
            raise DataError("no such file", file=file, remedy="check the path in the config") from error
        except pyarrow.ArrowException as error:
            raise DataError(f"not a Parquet table ({error})", file=file, remedy="fetch it again") from error
        counts = [self.groups.row_group(i).num_rows for i in range(self.groups.num_row_groups)]
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index):
        number = bisect.bisect_right(self.ends, index)
        start = self.ends[number - 1] if number else 0
        return _row_group(self.file, number).slice(index - start, 1).to_pylist()[0]


@functools.lru_cache(maxsize=_ROW_GROUPS)
def _row_group(file: str, number: int) -> pyarrow.Table:
    try:
        # One thread: the data workers are many already.
        return parquet.ParquetFile(file).read_row_group(number, use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        if machine_failed(error):
            raise
        raise DataError(
            f"row group {number} cannot be read ({error})", file=file, remedy="fetch the table again"
        ) from error


def dig(record: dict, path: str, *, file: str, index: int | str) -> Any:
    """The value at a path of keys and positions, such as "conversations.1.value".

    Raises:
      DataError: there is no such value; names the path.
    """
    value: Any = record
    for step in path.split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            there = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise DataError(
                f"no {step!r} in {there}",
                file=file,
                record=index,
                field=path,
                remedy="name the field as it is in the file",
            ) from None
    return value


def text_at(record: dict, path: str, *, file: str, index: int | str) -> str:
    """A text that is not empty.

    Raises:
      DataError: another type, or nothing but blanks.
    """
    value = dig(record, path, file=file, index=index)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{value!r:.60} is no text" if not isinstance(value, str) else "the text is empty",
            file=file,
            record=index,
            field=path,
            remedy="drop the record",
        )
    return value.strip()


def picture_at(
    record: dict, path: str, root: pathlib.Path, *, file: str, index: int | str
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as upright RGB, from a path below `root` or from encoded bytes.

    Raises:
      DataError: no picture, or one that cannot be decoded.
    """
    value = dig(record, path, file=file, index=index)
    if isinstance(value, dict):  # of the datasets library
        value = value.get("bytes") or value.get("path")
    place = {"file": file, "record": index, "field": path}
    if isinstance(value, str):
        try:
            return load_image(root / value)
        except DataError as error:
            raise error.at(record=index, field=path) from error
    if isinstance(value, bytes):
        try:
            return load_image(value)
        except DataError as error:
            raise DataError(error.message, remedy=error.remedy, **place) from error
    raise DataError(f"{type(value).__name__} is no picture", remedy="give a path or encoded bytes", **place)
