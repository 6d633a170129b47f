# SPDX-License-Identifier: Apache-2.0
"""Lists of class names: read from files, and chosen for one question."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import DataError

_ALL_CHANCE = 0.5


def choose_classes(
    count: int, present: Sequence[int], rng: np.random.Generator | None, *, most: int | None = None
) -> list[int]:
    """The classes that a question asks for, of `count` classes with numbers from 0.

    Half of the time all of them, else those in the picture and some of the others: how many is drawn
    uniformly, at least one if nothing is in the picture. In random order.

    Args:
      count: how many classes there are.
      present: numbers of those in the picture.
      rng: None asks for all in order, as for tests.
      most: no more than so many in training; what is present comes first.
    """
    if rng is None:
        return list(range(count))
    there = sorted(set(present))
    absent = np.setdiff1d(np.arange(count), there)
    most = count if most is None else min(most, count)
    extra = len(absent)
    if rng.random() >= _ALL_CHANCE:
        extra = min(extra, int(rng.integers(0 if there else 1, count + 1)))
    if len(there) > most:
        there = rng.permutation(there)[:most].tolist()
    chosen = [*there, *rng.permutation(absent)[: min(extra, most - len(there))].tolist()]
    return [int(number) for number in rng.permutation(chosen)]


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
