# SPDX-License-Identifier: Apache-2.0
"""Many combinations of settings compiled one after the other, and ranked."""

import itertools
from collections.abc import Callable, Sequence

import ml_collections

from launch.compile_report import Report
from launch.values import check_values
from vllm2_jax.sharding.report import readable

Found = Report | str  # a report, or why there is none
Ranking = list[tuple[str, Found]]


def sweep(
    config: ml_collections.ConfigDict,
    options: Sequence[str],
    compiled: Callable[[ml_collections.ConfigDict], Report],
) -> Ranking:
    """Reports of all combinations of `key=value|value`, the fastest first, then those that do not fit.

    Prints each one as it comes, so that hours of compiling are not lost with the terminal.

    Args:
      config: what all have in common.
      options: keys of the config with their values: `sharding.strategy=fsdp|fsdp_tp`, `sharding.mesh=...`,
        `sharding.devices=v5e:8x8|v5e:16x16`, `remat.llm=full|names`, `step.schedule=mixed|by_task`,
        `data.groups=64|128`, or any other number, text or truth value.
      compiled: the report of one config; what it raises as ValueError keeps that combination out.

    Returns:
      (the combination, its report or the text of the error that kept it from being compiled).
    """
    found: Ranking = []
    for combination in itertools.product(*map(_values, options)):
        name = " ".join(f"{key}={value}" for key, value in combination)
        one = ml_collections.ConfigDict(config)
        try:
            for key, value in combination:
                set_key(one, key, value)
            check_values(one)
            found.append((name, compiled(one)))
        except ValueError as error:
            found.append((name, str(error)))
        print(line(*found[-1]), flush=True)
    return sorted(found, key=_speed)


def _values(option: str) -> list[tuple[str, str]]:
    key, equals, values = option.partition("=")
    if not equals or not values:
        raise ValueError(f"--sweep {option!r} is not of the form key=value|value, as in data.groups=64|128")
    return [(key, value) for value in values.split("|")]


def set_key(config: ml_collections.ConfigDict, key: str, value: str) -> None:
    """Sets `data.groups` and the like from text, in the type the key has.

    Raises:
      ValueError: no such key, one that is no number, text or truth value, or a value of another kind.
    """
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node.get(part) if isinstance(node, ml_collections.ConfigDict) else None
    if not isinstance(node, ml_collections.ConfigDict) or last not in node:
        raise ValueError(f"the config has no key {key!r}")
    kind = type(node[last])
    if kind not in (int, float, str, bool):
        raise ValueError(f"config.{key} cannot be swept: it is a {kind.__name__}")
    if kind is bool and value.lower() not in ("true", "false"):
        raise ValueError(f"config.{key}={value}: it is true or false")
    node[last] = value.lower() == "true" if kind is bool else kind(value)


def _speed(entry: tuple[str, Found]) -> tuple[int, float]:
    """Sorts by the time for the model's operations; those without times by what they have."""
    report = entry[1]
    if isinstance(report, str):
        return 3, 0.0
    if report.memory is None:
        return 2, 0.0
    if report.times is None:
        return 1, report.memory.total
    # Chips that the batch keeps idle count: a slice twice as big has to be twice as fast to stand beside.
    return 0, report.times.worst * report.devices / report.model_flops


def fits(found: Found) -> bool:
    """Whether a combination was compiled and has room."""
    return isinstance(found, Report) and found.memory is not None and found.memory.total <= found.hbm


def smallest(ranking: Ranking) -> tuple[str, Report] | None:
    """The first of the ranking among those on the fewest devices that fit; None if nothing fits."""
    left = [(name, found) for name, found in ranking if isinstance(found, Report) and fits(found)]
    return min(left, key=lambda entry: entry[1].devices, default=None)


def line(name: str, report: Found) -> str:
    """One combination as a line of the ranking."""
    if isinstance(report, str):
        return f"{name}  cannot be: {report}"
    if report.memory is None:
        return f"{name}  does not fit: {report.problem}"
    times = ""
    if report.times is not None:
        mfu = f"{report.mfu(report.times.worst):.0%} to {report.mfu(report.times.best):.0%}"
        times = f"  step {report.times.best:.3f} to {report.times.worst:.3f} s, MFU {mfu}"
    sent = readable(int(sum(row.sent for row in report.collectives)))
    return f"{name}  {readable(report.memory.total)} a device, {sent} sent{times}"


def text(ranking: Ranking) -> str:
    """The ranking, and the smallest slice that fits."""
    lines = [line(*entry) for entry in ranking]
    best = smallest(ranking)
    where = "nothing fits" if best is None else f"smallest that fits: {best[0]} ({best[1].devices} devices)"
    return "\n".join([*lines, "", where]) + "\n"
