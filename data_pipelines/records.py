# SPDX-License-Identifier: Apache-2.0
"""Reads annotation files: JSON lists and JSON lines, with errors that name file, record and field."""

import json
import math
import pathlib
from typing import Any

from data_pipelines.errors import DataError


def read_json(file: str | pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      DataError: the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error})", file=file, remedy="download or repair the file") from error


def read_lines(file: str | pathlib.Path) -> list[tuple[str, Any]]:
    """The lines of a file of JSON lines: "line 1" and its value, and so on. Blank ones are skipped.

    Raises:
      DataError: a missing file, one that is not UTF-8, or bad JSON (with the line).
    """
    found = []
    for number, text in enumerate(read_text(file).split("\n"), 1):
        if not text.strip():
            continue
        try:
            found.append((f"line {number}", json.loads(text)))
        except json.JSONDecodeError as error:
            raise DataError(
                f"not JSON ({error})", file=file, record=f"line {number}", remedy="repair the line"
            ) from error
    return found


def read_text(file: str | pathlib.Path) -> str:
    """The content of a file of text.

    Raises:
      DataError: the file is missing or not UTF-8.
    """
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError("no such file", file=file, remedy="check the path in the config") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 ({error})", file=file, remedy="download or repair the file") from error


def read_records(file: str | pathlib.Path) -> list[dict]:
    """The records of a `.json` list or a `.jsonl` file (one object a line, blank lines skipped).

    Raises:
      DataError: a missing file, bad JSON (with the line), or a file that is no list of objects.
    """
    path = pathlib.Path(file)
    records = [value for _, value in read_lines(path)] if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(
            "the file is not a list of objects", file=file, remedy="give one object for each sample"
        )
    return records


def need(record: dict, field: str, kind: type | tuple[type, ...], *, file, index) -> Any:
    """`record[field]`, checked.

    Args:
      record: the annotation.
      field: its key.
      kind: the type or types the value may have.
      file: for the message.
      index: the record's id or number, for the message.

    Raises:
      DataError: the field is missing or of another type.
    """
    if field not in record:
        raise DataError(
            f"the field is missing; there are {', '.join(sorted(record)) or 'none'}",
            file=file,
            record=index,
            field=field,
            remedy="add the field or drop the record",
        )
    value = record[field]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(
            f"{value!r:.60} is a {type(value).__name__}",
            file=file,
            record=index,
            field=field,
            remedy=f"it has to be {' or '.join(k.__name__ for k in kinds)}",
        )
    return value


def need_box(record: dict, field: str, *, file, index) -> list[float]:
    """`record[field]`, which has to be x, y, width, height.

    Arguments as for `need`.

    Raises:
      DataError: the field is missing or not a list of four finite numbers.
    """
    box = need(record, field, list, file=file, index=index)
    if not are_numbers(box, 4):
        raise DataError(
            f"{box!r:.60} is not x, y, width, height",
            file=file,
            record=index,
            field=field,
            remedy="repair the box",
        )
    return box


def are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether `values` is a list of finite numbers, `count` of them if it is given."""
    good = isinstance(values, list | tuple) and count in (None, len(values))
    return good and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
