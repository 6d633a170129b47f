# SPDX-License-Identifier: Apache-2.0
"""Held-out pictures for the decoders that see: what one finds in them, and its scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.collate import TaskShape
from data_pipelines.example import Example
from data_pipelines.mixture import open_source
from launch.build import Config, Run, fill_root
from launch.perceive import Perceiver, Seen
from launch.truth import classes_of, objects_of
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.evals import EVALS, MAPS, MASKS
from vllm2_jax.evals.metric import gather
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.sharding.partition import host_share

SHOWN = 12  # pictures of each task that a report shows

_SHAPE_KEYS = ("length", "decoder", "tiles", "regions", "links", "capacities")


@dataclasses.dataclass(frozen=True)
class First:
    """The first records of a source, read when they are asked for."""

    source: Sequence[Example]
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Example:
        return self.source[index]


@dataclasses.dataclass(frozen=True)
class Sight:
    """Pictures for a decoder.

    Attributes:
      name: of the task, and of the dataset where the task has several.
      examples: with answers and targets.
      metrics: keys of `EVALS`.
      perceiver: runs the decoder.
    """

    name: str
    examples: First
    metrics: tuple[str, ...]
    perceiver: Perceiver


def open_datasets(
    config: Config, run: Run, count: int | None
) -> list[tuple[str, str, Mapping[str, Any], First]]:
    """(task, dataset, the task's entry, its first `count` records) of all of `config.eval.tasks`.

    Without a count there are `config.eval.examples` of each; 0 are all.
    """
    count = config.eval.examples if count is None else count
    found = []
    for task, entry in fill_root(config.eval.tasks.to_dict(), config.data.root).items():
        for name, options in entry["datasets"].items():
            source = open_source(name, options, spec=run.spec, seed=config.seed)
            found.append((task, name, entry, First(source, count or len(source))))
    return found


def read_sights(config: Config, run: Run, count: int | None = None) -> list[Sight]:
    """The datasets of the tasks with a decoder that sees."""
    sights, pictures = [], config.eval.pictures
    for task, dataset, entry, source in open_datasets(config, run, count):
        if entry.get("decoder") and entry["decoder"] not in PAINTERS:
            shape = task_shape(entry)
            name = task if len(entry["datasets"]) == 1 else f"{task}/{dataset}"
            metrics = tuple(entry["metrics"])
            perceiver = Perceiver(
                run,
                shape,
                pictures,
                masks=not MASKS.isdisjoint(metrics),
                classes=not MAPS.keys().isdisjoint(metrics),
            )
            sights.append(Sight(name, source, metrics, perceiver))
    return sights


def task_shape(entry: Mapping[str, Any]) -> TaskShape:
    """The static shape of one row of a task of `config.eval.tasks`."""
    return TaskShape(rows=1, **{key: entry[key] for key in _SHAPE_KEYS if key in entry})


def look(sight: Sight, model: VisionLLMv2) -> tuple[list[Seen], dict[str, float]]:
    """What a decoder sees in the first pictures of this process' share, and its scores on all of them.

    The scores are `<task>/<value>`; all processes get the same.
    """
    first: list[Seen] = []
    records: dict[str, dict[int, Any]] = {name: {} for name in sight.metrics}
    for seen in sight.perceiver(model, sight.examples):
        for name, mine in records.items():
            if name in MAPS:
                pair: Any = (seen.classes, classes_of(seen.example, seen.decoder))
            else:
                pair = (seen.objects, objects_of(seen.example, seen.decoder))
            mine[seen.number] = EVALS[name].record(*pair)
        if len(first) < SHOWN:
            first.append(seen)
    # What the static shapes left out makes scores worse than they are, so it stands beside them.
    part, _ = host_share(sight.perceiver.run.mesh, sight.perceiver.run.strategy.rules)
    dropped = gather({part: dict(sight.perceiver.dropped)})
    scores: dict[str, float] = {
        f"{sight.name}/{what}": float(sum(counts.get(what, 0) for counts in dropped))
        for what in ("dropped_links", "dropped_targets")
    }
    for name, mine in records.items():
        values = EVALS[name].score(gather(mine))
        scores |= {f"{sight.name}/{key}": value for key, value in values.items()}
    return first, scores
