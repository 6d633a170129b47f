# SPDX-License-Identifier: Apache-2.0
"""From a mixture (tasks, their rows, their datasets with weights) to batches: resumable, one shard a host.

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
ever, host h of n takes records h, h + n, ... of it. Bad records are replaced by the next ones of the same
stream (`skip`).
"""

import functools
import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines import DATASETS
from data_pipelines.collate import CollateSpec, TaskShape, blank_row, collate, make_row
from data_pipelines.errors import DataError
from data_pipelines.packing import pack
from data_pipelines.skip import Reader, SkipBad
from data_pipelines.tokenizer import Tokenizer
from vllm2_jax.batch import TaskRows

_SHAPE_KEYS = ("rows", "decoder", "tiles", "regions", "links", "pack", "capacities")
_PACKING_BINS = 32  # rows packed side by side, at least


def make_dataset(
    mixture: Mapping[str, Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    spec: CollateSpec,
    groups: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    repeat: bool = True,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
) -> grain.IterDataset:
    """Batches of a mixture.

    Args:
      mixture: see above.
      tokenizer: of the model's language model.
      spec: what rows of all tasks share.
      groups: G, groups of rows on this host.
      seed: of the shuffling and of the datasets' own choices. Streams are seeded by task and dataset name, so
        adding a dataset leaves the others' order as it is.
      host, hosts: this host's number and how many there are; all hosts pass the same other arguments.
      repeat: for ever, shuffled (training). False is one pass in order over the only dataset of the only task
        (evaluation): bad records and the end are filled up with blank rows, so that all hosts see equally
        many batches.
      workers: processes that read, 0 for none. They take the records of the stream in turns, so the order
        depends on their number: resume with the same one.
      threads: threads that read, in each process and for each dataset; pictures decode in parallel.
      prefetch: batches made ahead; 0 makes each one when it is asked for.

    Returns:
      A dataset whose iterator has an exact `get_state` and `set_state`. Its elements:
        "batch": task -> `TaskRows` of numpy arrays that lead with this host's groups;
        "counters": "<task>/skipped" (bad records), "<task>/dropped_links", "<task>/dropped_targets" of this
          batch alone, to be added up.

    Raises:
      ValueError: a mixture that cannot be: unknown keys, datasets, links or decoders.
      DataError: a dataset that cannot be opened.
    """
    shapes = task_shapes(mixture, strict=spec.strict)
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts} does not exist")
    if not repeat and (len(shapes) > 1 or len(next(iter(mixture.values()))["datasets"]) > 1 or workers):
        raise ValueError("repeat=False takes a mixture of one task with one dataset, and no worker processes")

    tasks = []
    for task, shape in shapes.items():
        blank = blank_row(tokenizer, spec, shape)
        make = functools.partial(make_row, tokenizer=tokenizer, spec=spec, shape=shape)
        streams, weights = [], []
        for name, options in mixture[task]["datasets"].items():
            stream = f"{task}/{name}"
            source = open_source(name, options, spec=spec, seed=_seed(seed, stream))
            if repeat and len(source) <= host:
                raise DataError(
                    f"{stream!r} has {len(source)} records for {hosts} hosts; host {host} gets none",
                    remedy="leave it out of the mixture, or use fewer hosts",
                )
            blanks = 0 if repeat else -len(source) % (hosts * groups * shape.rows)
            reader = Reader(source, make, blanks=blanks, blank=blank)
            rows = grain.MapDataset.range(len(reader))
            if repeat:
                rows = rows.shuffle(seed=_seed(seed, stream)).repeat()
            rows = rows.map_with_index(reader.read)[host::hosts]
            rows = rows.to_iter_dataset(grain.ReadOptions(threads, 2 * threads))
            fill = None if repeat else blank
            streams.append(SkipBad(rows, name=stream, records=len(source), blank=fill))
            weights.append(float(options.get("weight", 1.0)))
        rows = streams[0] if len(streams) == 1 else grain.IterDataset.mix(streams, weights)
        if shape.pack:
            rows = pack(rows, blank=blank, bins=max(_PACKING_BINS, groups * shape.rows))
        stack = functools.partial(collate, spec=spec, shape=shape)
        tasks.append(rows.batch(groups * shape.rows, drop_remainder=True, batch_fn=stack))

    batches = grain.experimental.ZipIterDataset(tasks).map(functools.partial(_element, tuple(shapes)))
    if workers:
        if not flags.FLAGS.is_parsed():  # outside of absl.app; Grain's workers read a flag of its own
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch))
        return batches.mp_prefetch(options)
    if prefetch:
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
    return batches


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
    _check_links(shapes)
    return shapes


def _check_links(shapes: Mapping[str, TaskShape]) -> None:
    """Tasks of one decoder are joined with free places at the end: each kind has to start at the same one."""
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


def blank_batch(
    mixture: Mapping[str, Mapping[str, Any]], *, tokenizer: Tokenizer, spec: CollateSpec, groups: int
) -> dict[str, TaskRows]:
    """A batch of padding: the shapes and types that `make_dataset` yields, without opening a dataset."""
    batch = {}
    for task, shape in task_shapes(mixture, strict=spec.strict).items():
        rows = [blank_row(tokenizer, spec, shape)] * (groups * shape.rows)
        batch[task] = collate(rows, spec, shape)[0]
    return batch


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


def _element(names: tuple[str, ...], tasks: tuple[tuple[TaskRows, dict[str, int]], ...]) -> dict[str, Any]:
    return {
        "batch": {name: rows for name, (rows, _) in zip(names, tasks, strict=True)},
        "counters": {
            f"{name}/{what}": count
            for name, (_, counters) in zip(names, tasks, strict=True)
            for what, count in counters.items()
        },
    }


def _seed(seed: int, name: str) -> int:
    """A seed of 32 bits for one stream; streams of different names are independent."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
