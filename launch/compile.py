# SPDX-License-Identifier: Apache-2.0
"""Compiles the train step for a slice one does not have, and reports what it costs. Makes no arrays.

    python -m launch.compile --config configs/stage1_tune_7b.py --topology v5p:4x4x4 --explain
    python -m launch.compile --config configs/base.py:tiny --topology cpu:8 --chip v5e
    python -m launch.compile --config configs/stage1_tune_7b.py --topology v5e:16x16 \\
        --sweep 'sharding.strategy=fsdp|fsdp_tp' --sweep 'remat.llm=full|names' --sweep 'data.groups=64|128'

Topologies are `v5e:4x4` (chips along each side of the torus), `2*v5e:16x16` (slices joined by the data-centre
network), or `cpu:8` (virtual devices, without libtpu). `--out FILE` writes FILE.md and FILE.json. Times are a
roofline from public peaks, not measurements. Exits with 2 when config, mesh or topology are at fault, or when
nothing fits.
"""

import itertools
import json
import os
import pathlib
import re
import sys
import time
from typing import Any

# Before jax is imported: nothing here uses a device, and libtpu must not look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    wanted = re.search(r"cpu:(\d+)", " ".join(sys.argv))
    count = f"--xla_force_host_platform_device_count={wanted[1] if wanted else 1}"
    # LLVM's optimisations take most of the time to compile for a CPU, and no report shows them.
    quick = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count} {quick}".strip()

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from launch.abstract import abstract_batch, activations, lower_step, model_flops
from launch.build import build_run
from launch.compile_report import Report, analyse, check_state, explain, facts, markdown, state_bytes
from vllm2_jax.sharding.chips import chip_of, find_chip
from vllm2_jax.sharding.report import readable


def compile_report(
    config: ml_collections.ConfigDict, *, chip: str = "", text: str = ""
) -> tuple[Report, Any]:
    """Lowers and compiles the train step of a config for `config.sharding.devices`.

    Args:
      config: of the run.
      chip: whose facts to judge by where the devices are no TPU; "" for none.
      text: file for the compiled program's text; "" for none.

    Returns:
      The report and the `Run`. A program that does not fit has a report without memory.

    Raises:
      ValueError: an unknown topology or chip, a mesh or groups that do not fit, a state beyond the memory.
    """
    run = build_run(config)
    judge = find_chip(chip) if chip else chip_of(list(run.mesh.devices.flat))
    batch = abstract_batch(config, run)
    fields: dict[str, Any] = {
        "title": f"{config.sharding.strategy} on {config.sharding.devices or 'the attached devices'}",
        "facts": facts(run, config, batch),
        "devices": run.mesh.size,
        "chip": judge,
        "memory": None,
        "state": state_bytes(run),
        "problem": "",
    }
    if judge is not None:
        check_state(run, judge.hbm / judge.devices)
    fields["model_flops"] = model_flops(config, batch)
    start = time.perf_counter()
    lowered = lower_step(run, batch)
    fields["lower_seconds"] = time.perf_counter() - start
    logging.info("lowered in %.1f s, compiling for %d devices", fields["lower_seconds"], run.mesh.size)
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fields["problem"] = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0]
    else:
        if text:
            pathlib.Path(text).write_text(program.as_text())
        fields |= analyse(run, program, judge)
    fields["compile_seconds"] = time.perf_counter() - start
    return Report(**fields), run


def sweep(config: ml_collections.ConfigDict, options: list[str], *, chip: str = "") -> list[tuple[str, Any]]:
    """Reports of all combinations of `key=value|value`, the fastest first, then those that do not fit.

    Returns:
      (the combination, its `Report` or the text of the error that kept it from being compiled).
    """
    axes = []
    for option in options:
        key, equals, values = option.partition("=")
        if not equals or not values:
            raise ValueError(
                f"--sweep {option!r} is not of the form key=value|value, as in data.groups=64|128"
            )
        axes.append([(key, value) for value in values.split("|")])
    found: list[tuple[str, Any]] = []
    for combination in itertools.product(*axes):
        name = " ".join(f"{key}={value}" for key, value in combination)
        one = ml_collections.ConfigDict(config)
        try:
            for key, value in combination:
                set_key(one, key, value)
            found.append((name, compile_report(one, chip=chip)[0]))
        except ValueError as error:
            found.append((name, str(error)))
        print(_line(*found[-1]), flush=True)
    return sorted(found, key=_speed)


def set_key(config: ml_collections.ConfigDict, key: str, value: str) -> None:
    """Sets `data.groups` and the like from text, in the type the key has.

    Raises:
      ValueError: no such key, or one that is no number, text or truth value.
    """
    *path, last = key.split(".")
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, ml_collections.ConfigDict) else None
    if not isinstance(node, ml_collections.ConfigDict) or last not in node:
        raise ValueError(f"the config has no key {key!r}")
    kind = type(node[last])
    if kind not in (int, float, str, bool):
        raise ValueError(f"config.{key} cannot be swept: it is a {kind.__name__}")
    node[last] = value == "True" if kind is bool else kind(value)


def _speed(entry: tuple[str, Any]) -> tuple[int, float]:
    """Sorts by time for one row of the batch; those without times by what they have."""
    report = entry[1]
    if isinstance(report, str):
        return 3, 0.0
    if report.memory is None:
        return 2, 0.0
    if report.times is None:
        return 1, report.memory.total
    return 0, report.times.best / report.model_flops


def _line(name: str, report: Any) -> str:
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


def main(argv: list[str]) -> None:
    """Reads the flags and compiles."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    config = flags.FLAGS.config
    try:
        if flags.FLAGS.topology:
            config.sharding.devices = flags.FLAGS.topology
        if flags.FLAGS.tasks:
            choose_tasks(config, flags.FLAGS.tasks)
        if flags.FLAGS.sweep:
            ranking = sweep(config, flags.FLAGS.sweep, chip=flags.FLAGS.chip)
            text = "\n".join(_line(*entry) for entry in ranking) + "\n"
            data: Any = {
                name: found if isinstance(found, str) else found.to_json() for name, found in ranking
            }
            fits = any(isinstance(found, Report) and found.memory is not None for _, found in ranking)
        else:
            report, run = compile_report(config, chip=flags.FLAGS.chip, text=flags.FLAGS.text)
            text, data, fits = markdown(report), report.to_json(), report.memory is not None
            if flags.FLAGS.explain:
                text += "\n" + explain(run, report, activations(run, abstract_batch(config, run)))
            print(f"lowered in {report.lower_seconds:.1f} s, compiled in {report.compile_seconds:.1f} s")
    except ValueError as error:
        print(f"launch.compile: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    if flags.FLAGS.out:
        out = pathlib.Path(flags.FLAGS.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_name(out.name + ".md").write_text(text)
        out.with_name(out.name + ".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    sys.exit(0 if fits else 2)


def choose_tasks(config: ml_collections.ConfigDict, tasks: list[str]) -> None:
    """Leaves only some tasks in the mixture: the step of one decoder, for instance.

    Raises:
      ValueError: a task that the mixture does not have.
    """
    mixture = config.data.mixture
    unknown = sorted(set(tasks) - set(mixture))
    if unknown:
        raise ValueError(f"no task {', '.join(unknown)}; the mixture has {', '.join(mixture)}")
    with config.unlocked():
        for task in set(mixture) - set(tasks):
            del mixture[task]


def define_flags() -> None:
    """Not when imported: other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "As for launch.train; --config.key=value sets a key.")
    flags.DEFINE_string("topology", "", "Slice to compile for; '': that of the config.")
    flags.DEFINE_list("tasks", [], "Tasks of the mixture that the batch has; all if not given.")
    flags.DEFINE_string("chip", "", "Chip whose speed a CPU topology is judged by: v4, v5e, v5p, v6e.")
    flags.DEFINE_string("out", "", "Writes OUT.md and OUT.json.")
    flags.DEFINE_string("text", "", "Writes the compiled program as the compiler prints it.")
    flags.DEFINE_bool("explain", False, "Also says which parts of the model cost most.")
    flags.DEFINE_multi_string("sweep", [], "key=value|value|...: compiles all combinations, ranks them.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("config")
    app.run(main)
