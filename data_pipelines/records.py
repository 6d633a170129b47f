# SPDX-License-Identifier: Apache-2.0
"""Reads annotation files: JSON lists and JSON lines, with errors that name file, record and field."""

import json
import pathlib
from typing import Any

from data_pipelines.errors import DataError


def read_json(file: str | pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such file", file=file, remedy="check the path in the config") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not JSON ({error})", file=file, remedy="download or repair the file") from error


def read_records(file: str | pathlib.Path) -> list[dict]:
    """The records of a `.json` list or a `.jsonl` file (one object a line, blank lines skipped).

    Raises:
      DataError: a missing file, bad JSON (with the line), or a file that is no list of objects.
    """
    path = pathlib.Path(file)
    if path.suffix != ".jsonl":
        records = read_json(path)
    else:
        records = []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError as error:
            raise DataError("no such file", file=file, remedy="check the path in the config") from error
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line {number + 1} is not JSON ({error})", file=file, remedy="repair the line"
                ) from error
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
