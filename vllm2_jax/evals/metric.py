# SPDX-License-Identifier: Apache-2.0
"""What a metric is: one small record for each prediction, and a summary of all records.

The two steps let every process record the predictions it made; `gather` brings the records together, and all
processes summarise the same list. A metric therefore gives the same values on one process and on many.
"""

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      record: (prediction, truth) -> what the summary needs of them; plain data that can be pickled. The
        types of prediction and truth are the same for a whole family: `Detections` and `GroundTruth`
        (`objects.py`), `LabelMap` twice (`semantic.py`), or a text and a `Question`.
      summarise: records -> named values. A value that these records do not define (the precision on small
        objects where there are none) is left out.
    """

    record: Callable[[Any, Any], Any]
    summarise: Callable[[Sequence[Any]], dict[str, float]]

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """The named values.

        Raises:
          ValueError: no records at all.
        """
        if not records:
            raise ValueError("nothing to score: give the evaluation some examples")
        return self.summarise(records)

    def __call__(self, predictions: Iterable[Any], truths: Iterable[Any]) -> dict[str, float]:
        """Records and scores in one go, on one process."""
        return self.score([self.record(p, t) for p, t in zip(predictions, truths, strict=True)])


@dataclasses.dataclass(frozen=True)
class Question:
    """What is known about a question that is answered in words.

    Attributes:
      answers: the true answer, or all that count: those of the annotators, or the accepted ones.
      kind: what is asked for; metrics that distinguish kinds give each its own value.
      options: letter -> text, where the answer is one of several.
      group: what the questions of one picture share, where a metric looks at them together.
    """

    answers: tuple[str, ...]
    kind: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str = ""


def gather(records: Mapping[int, Any]) -> list[Any]:
    """The records of all processes in the order of their numbers; every process gets all.

    Args:
      records: number of the example -> its record. An example that several processes worked on counts once.
    """
    merged = dict(records)
    if jax.process_count() > 1:
        # Our own processes wrote these bytes, so unpickling them is safe.
        mine = np.frombuffer(pickle.dumps(merged), np.uint8)
        sizes = multihost_utils.process_allgather(np.array(len(mine), np.int32))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(mine)] = mine
        for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True):
            merged |= pickle.loads(np.asarray(row)[:size].tobytes())
    return [merged[number] for number in sorted(merged)]
