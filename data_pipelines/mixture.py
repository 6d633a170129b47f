# SPDX-License-Identifier: Apache-2.0
"""From a mixture (tasks, their rows, their datasets with weights) to batches: resumable, on any hosts.

    mixture = {
        "chat": {
            "rows": 8, "tiles": 1,
            "datasets": {"synthetic": {"weight": 1.0, "task": "chat"}},
        },
        "region": {
            "rows": 4, "tiles": 5, "regions": 4,
            "datasets": {
                "vg": {"loader": "region_captions", "weight": 0.7, "annotations": "...", "image_root": "..."},
                "easy": {"loader": "synthetic", "weight": 0.3, "task": "region"},
            },
        },
    }

The keys of a task are those of `collate.TaskShape` and `datasets`. A dataset's key is its loader in
`DATASETS` unless `loader` names one; `weight` is its share of the task's rows; the rest goes to the loader.

Every dataset of every task is its own stream: shuffled and drawn anew in each epoch (`draws`), repeated for
ever, bad records replaced by others (`streams`). Which rows a batch takes, and which of them a host reads,
follows from the number of the batch (`batches`).
"""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import DATASETS
from data_pipelines.ahead import Ahead
from data_pipelines.batches import Batches, Layout, Task
from data_pipelines.collate import CollateSpec, Row, TaskShape, blank_row, make_row
from data_pipelines.collate_perception import STRIDE
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.streams import Stream
from data_pipelines.tokenizer import Tokenizer

_SHAPE_KEYS = ("rows", "length", "decoder", "tiles", "regions", "links", "pack", "capacities")

# Decoder -> capacities that its tasks share, and their values if not given. The zeros that fill up a smaller
# array would change the scale of its masks, the border of its pictures, the end of its captions.
_SHARED: dict[str, dict[str, Any]] = {
    "grounding_dino": {"stride": STRIDE},
    **dict.fromkeys(
        ("stable_diffusion", "instruct_pix2pix"),
        dict.fromkeys(("size", "caption", "moments", "caption_states")),
    ),
}


def make_dataset(
    mixture: Mapping[str, Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    spec: CollateSpec,
    groups: int,
    seed: int,
    mine: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
    timeout: float = 0.0,
) -> grain.IterDataset:
    """Batches of a mixture, for ever.

    Args:
      mixture: see above.
      tokenizer: of the model's language model.
      spec: what rows of all tasks share.
      groups: G, groups of rows in a batch, over all hosts.
      seed: of the shuffling and of the datasets' own choices. Streams are seeded by task and dataset name, so
        adding a dataset leaves the others' order as it is.
      mine: numbers of the groups that this host makes, in this order; None: all. Hosts pass the same other
        arguments.
      workers: processes that make batches, 0 for none. Packed tasks are always made in this one.
      threads: threads that read, in each process; pictures decode in parallel.
      prefetch: batches made ahead, by each worker process if there are some; 0 makes each one when it is
        asked for.
      timeout: seconds without a batch after which the iterator raises `StalledError`; 0: never.

    Returns:
      A dataset whose iterator has an exact `get_state` and `set_state`, which may be used with other `mine`,
      `workers`, `threads` and `prefetch` (see `batches` for packed tasks). Its elements:
        "batch": task -> `TaskRows` of numpy arrays that lead with this host's groups;
        "counters": "<task>/skipped" (bad records), "<task>/dropped_links", "<task>/dropped_targets" of this
          batch alone, to be added up.

    Raises:
      ValueError: a mixture that cannot be: unknown keys, datasets, links or decoders; groups that do not
        exist; a negative number of threads, workers, batches or seconds.
      DataError: a dataset that cannot be opened.
    """
    numbers = {"threads": threads, "workers": workers, "prefetch": prefetch, "timeout": timeout}
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"data.{name} is {value}; it has to be at least 0")
    shapes = task_shapes(mixture, strict=spec.strict)
    mine = range(groups) if mine is None else mine
    if not mine or not all(0 <= group < groups for group in mine):
        raise ValueError(f"a host cannot make the groups {list(mine)} of {groups}")
    tasks = {}
    for task, shape in shapes.items():
        make = functools.partial(_taught_row, tokenizer=tokenizer, spec=spec, shape=shape)
        streams, weights = [], []
        for name, options in mixture[task]["datasets"].items():
            stream = f"{task}/{name}"
            source = open_source(name, options, spec=spec, seed=_seed(seed, stream))
            rows = Stream(source, make, name=stream, seed=_seed(seed, stream))
            streams.append(grain.MapDataset.source(rows))
            weights.append(float(options.get("weight", 1.0)))
        mixed = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)
        tasks[task] = Task(mixed, shape, blank_row(tokenizer, spec, shape))

    warn = timeout / 10
    layout = Layout(tasks, spec, groups, tuple(mine), threads, workers, prefetch, warn)
    # What the threads and workers have in the making counts as made ahead.
    inside = prefetch if workers else min(2, prefetch) if threads > 1 else 0
    return Ahead(Batches(layout), count=prefetch - inside, timeout=timeout, workers=workers)


def _taught_row(example: Example, *, tokenizer: Tokenizer, spec: CollateSpec, shape: TaskShape) -> Row:
    """A row to learn from: a question at the end, which nobody answers, is left out of it.

    Raises:
      DataError: see `make_row`; also if there is no answer at all.
    """
    unanswered = bool(example.turns) and example.turns[-1][0] == "human"
    turns = example.turns[:-1] if unanswered else example.turns
    if all(role == "human" for role, _ in turns):
        raise DataError(
            "there is no answer to learn from",
            file=example.file,
            record=example.record,
            field="conversations",
            remedy="add the answer or drop the record",
        )
    return make_row(dataclasses.replace(example, turns=turns), tokenizer, spec, shape)


def task_shapes(mixture: Mapping[str, Mapping[str, Any]], *, strict: bool = True) -> dict[str, TaskShape]:
    """The static shapes of every task of a mixture.

    Raises:
      ValueError: names the task and what is wrong with it.
    """
    if not mixture:
        raise ValueError("the mixture has no task")
    shapes = {}
    for task, config in mixture.items():
        unknown = set(config) - {*_SHAPE_KEYS, "datasets"}
        if unknown or "rows" not in config or not config.get("datasets"):
            wrong = f"unknown keys {sorted(unknown)}" if unknown else "needs `rows` and `datasets`"
            raise ValueError(
                f"task {task!r} of the mixture: {wrong}; its keys are datasets, {', '.join(_SHAPE_KEYS)}"
            )
        options = {key: config[key] for key in _SHAPE_KEYS if key in config}
        try:
            shapes[task] = TaskShape(**options, strict=strict)
        except ValueError as error:
            raise ValueError(f"task {task!r} of the mixture: {error}") from error
    _check_joined(shapes)
    return shapes


def _check_joined(shapes: Mapping[str, TaskShape]) -> None:
    """Tasks of one decoder are joined with free places at the end, which must not change what they say.

    Raises:
      ValueError: kinds of links that start at different places, or capacities that have to be the same.
    """
    first: dict[str, str] = {}
    for task, shape in shapes.items():
        if shape.decoder is None:
            continue
        other = first.setdefault(shape.decoder, task)
        mine, theirs = dict(shape.links), dict(shapes[other].links)
        if mine != theirs and (len(mine) > 1 or len(theirs) > 1):
            raise ValueError(
                f"tasks {other!r} and {task!r} of the mixture call the decoder {shape.decoder!r} with links "
                f"of several kinds, {theirs} and {mine}: give both the same"
            )
        for name, default in _SHARED.get(shape.decoder, {}).items():
            given, needed = (of.capacities.get(name, default) for of in (shape, shapes[other]))
            if given != needed:
                raise ValueError(
                    f"tasks {other!r} and {task!r} of the mixture call the decoder {shape.decoder!r} with "
                    f"{name} {needed} and {given}: give both the same"
                )


def open_source(name: str, options: Mapping[str, Any], *, spec: CollateSpec, seed: int) -> Any:
    """Opens one dataset of a mixture: random access to examples.

    Args:
      name: its key in the mixture.
      options: its value there.
      spec: gives `tile_size` and `counts` to loaders that take them.
      seed: given to loaders that take one, unless the options do.

    Raises:
      ValueError: an unknown loader, a weight that is not positive, or options the loader does not take.
      DataError: the loader cannot open its files, or finds no records.
    """
    options = dict(options)
    loader, weight = options.pop("loader", name), options.pop("weight", 1.0)
    if loader not in DATASETS:
        raise ValueError(
            f"dataset {name!r}: unknown loader {loader!r}, there are {', '.join(sorted(DATASETS))}"
        )
    if not weight > 0:
        raise ValueError(f"dataset {name!r}: the weight has to be positive, not {weight}")
    takes = inspect.signature(DATASETS[loader]).parameters
    unknown = set(options) - set(takes)
    if unknown:
        raise ValueError(
            f"dataset {name!r}: the loader {loader!r} does not take {sorted(unknown)}; "
            f"it takes {', '.join(takes)}"
        )
    shared = {"tile_size": spec.tile_size, "counts": spec.counts, "seed": seed}
    source = DATASETS[loader](**{**{k: v for k, v in shared.items() if k in takes}, **options})
    if not len(source):
        raise ValueError(f"dataset {name!r} has no records")
    return source


def _seed(seed: int, name: str) -> int:
    """A seed of 32 bits for one stream; streams of different names are independent."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
