# SPDX-License-Identifier: Apache-2.0
"""Lists of class names: read from files, and chosen for one question."""

import json
import pathlib
from collections.abc import Collection

import numpy as np

from data_pipelines.errors import DataError

_ALL_CHANCE = 0.5


def choose_classes(
    count: int,
    present: Collection[int],
    rng: np.random.Generator | None,
    *,
    absent: Collection[int] | None = None,
    most: int | None = None,
) -> list[int]:
    """The classes that a question asks for, of `count` classes with numbers from 0.

    Half of the time all of them, if they fit and it is known of each whether it is there. Else those in the
    picture and some of the others: how many is drawn uniformly, at least one if nothing is in the picture. In
    random order. (So do the official COCO and ADE20K data, and those of detection with up to 100 classes.)

    Args:
      count: how many classes there are.
      present: numbers of those in the picture.
      rng: None asks for all in order, as for tests.
      absent: numbers of those that are known not to be there; all others by default.
      most: no more than so many in training; what is present comes first.
    """
    if rng is None:
        return list(range(count))
    there = sorted(set(present))
    others = sorted(set(range(count) if absent is None else absent) - set(there))
    most = count if most is None else most
    if len(there) + len(others) == count <= most and rng.random() < _ALL_CHANCE:
        return rng.permutation(count).tolist()
    there = rng.permutation(there).astype(int)[:most].tolist()
    room = most - len(there)
    # Where all fit the draw may exceed what is left, which makes "all" likelier still: the official rule.
    extra = int(rng.integers(0 if there else 1, (count if count <= most else room) + 1))
    chosen = [*there, *rng.permutation(others).astype(int)[: min(extra, room)].tolist()]
    return rng.permutation(chosen).astype(int).tolist()


def read_names(file: str | pathlib.Path) -> tuple[str, ...]:
    """Names of classes from a JSON list or from a text file with one on each line.

    Blanks around a name stay as they are in JSON: some of ADE20K's names end with one, in the answers that
    released weights have learned.

    Raises:
      DataError: a missing file, a name that is no text or empty, or two that are equal.
    """
    path = pathlib.Path(file)
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else [x for x in text.splitlines() if x.strip()]
    except FileNotFoundError as error:
        raise DataError("no such file", file=file, remedy="check the path in the config") from error
    except ValueError as error:
        raise DataError(f"not JSON ({error})", file=file, remedy='give a list: ["wall", "floor"]') from error
    if not isinstance(names, list) or not names:
        raise DataError("not a list of names", file=file, remedy='give a list: ["wall", "floor"]')
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or name in names[:number]:
            raise DataError(
                f"{name!r} is empty, no text, or listed before",
                file=file,
                record=number,
                remedy="give every class its own name",
            )
    return tuple(names)
