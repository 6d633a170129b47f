# SPDX-License-Identifier: Apache-2.0
"""Compiles a program for a slice one does not have, and reports what it costs. Makes no arrays.

    python -m launch.compile --config configs/stage1_tune_7b.py --topology v5p:4x4x4 --explain
    python -m launch.compile --config configs/base.py:tiny --topology cpu:8 --chip v5e
    python -m launch.compile --config configs/one_decoder.py:unipose --topology v5e:1x1 --program unipose
    python -m launch.compile --config configs/stage1_tune_7b.py --topology v5e:16x16 --chart sweep.svg \\
        --sweep 'sharding.strategy=fsdp|fsdp_tp' --sweep 'remat.llm=full|names' --sweep 'data.groups=64|128'

`--program` is `train` (a step with its update), `generate` (answers to prompts), or a decoder (its losses and
gradients alone). Topologies are `v5e:4x4` (chips along each side of the torus), `2*v5e:16x16` (slices joined
by the data-centre network), or `cpu:8` (virtual devices, without libtpu). `--schedule_only` leaves out the
machine code, which takes the compiler longest. `--out FILE` writes FILE.md and FILE.json; `--save FILE` the
executable, which `--load FILE` reports on. Times are a roofline from public peaks, not measurements. Exits
with 2 when config, mesh or topology are at fault, or when nothing fits.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import sys
import time
from typing import Any

# Before jax is imported: nothing here uses a device, and libtpu must not look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    wanted = max(map(int, re.findall(r"cpu:([1-9]\d*)", " ".join(sys.argv))), default=1)
    count = f"--xla_force_host_platform_device_count={wanted}"
    # LLVM's optimisations take most of the time to compile for a CPU, and no report shows them.
    quick = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count} {quick}".strip()

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from launch import executables, exits, tpu_flags
from launch.build import Run, build_run
from launch.chart import chart
from launch.compile_report import (
    Report,
    analyse,
    check_weights,
    explain,
    facts,
    markdown,
    memory_of,
    weight_bytes,
)
from launch.programs import Job, kept, lower, make_job, needed_flops
from launch.scheduled import memory_problem, scheduled
from launch.sweep import fits, sweep, text
from vllm2_jax.sharding.chips import chip_of, find_chip
from vllm2_jax.sharding.report import readable
from vllm2_jax.train.paths import make_folder, place


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program and what is known of it.

    Attributes:
      report: the numbers.
      run, job: what was compiled.
      program: `jax.stages.Compiled`; None if it does not fit, and if no code was made.
      text: as the compiler prints it; "" if it does not fit.
    """

    report: Report
    run: Run
    job: Job
    program: Any
    text: str


def compiled(
    config: ml_collections.ConfigDict,
    *,
    program: str = "train",
    name: str = "",
    chip: str = "",
    load: str = "",
    flops: float | None = None,
    schedule_only: bool = False,
) -> Compiled:
    """Lowers and compiles a program of a config for `config.sharding.devices`.

    Args:
      config: of the run.
      program: a name as `programs.make_job` takes it.
      name: of the config, for the title.
      chip: whose facts to judge by where the devices are no TPU; "" for none.
      load: file of an executable to report on; "" compiles.
      flops: operations that the model needs, if they are known; None counts them.
      schedule_only: end before machine code is made, see `launch.scheduled`.

    Raises:
      ValueError: an unknown topology or chip, a mesh or groups that do not fit, a state beyond the memory.
    """
    run = build_run(config)
    devices = list(run.mesh.devices.flat)
    judge = find_chip(chip) if chip else chip_of(devices)
    job = make_job(program, config, run)
    if judge is not None:
        check_weights(job.weights, run.mesh, judge.hbm)
    where = config.sharding.devices or "the attached devices"
    fields: dict[str, Any] = {
        "title": f"{job.title}{name and f' of {name}'}: {config.sharding.strategy} on {where}",
        "facts": facts(run, job, config),
        "devices": run.mesh.size,
        "chip": judge,
        "memory": None,
        "state": weight_bytes(job.weights, run.mesh),
        "problem": "",
        "model_flops": needed_flops(program, config) if flops is None else flops,
    }
    executable, text = None, ""
    start = time.perf_counter()
    if load:
        executable = executables.load(load, devices, name=program, config=config)
    elif schedule_only:
        planned = scheduled(config, program)
        text = planned.text
        fields |= {name: getattr(planned, name) for name in ("memory", "problem", "lower_seconds")}
        start += planned.lower_seconds
    else:
        lowered = lower(job, run)
        fields["lower_seconds"] = time.perf_counter() - start
        logging.info("lowered in %.1f s, compiling for %d devices", fields["lower_seconds"], len(devices))
        start = time.perf_counter()
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            fields["problem"] = memory_problem(error)
    fields["compile_seconds"] = time.perf_counter() - start
    if executable is not None:
        text, fields["memory"] = executable.as_text(), memory_of(executable)
    if text:
        fields |= analyse(run, text, judge)
    return Compiled(Report(**fields), run, job, executable, text)


def main(argv: list[str]) -> None:
    """Reads the flags and compiles."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    tpu_flags.set_flags()
    options = flags.FLAGS
    config = options.config
    name = config_flags.get_config_filename(options["config"])
    try:
        for flag in ("out", "text", "save", "chart"):  # what cannot be written is known before hours of work
            if file := options[flag].value:
                make_folder(place(file).parent, f"--{flag}")
        if options.topology:
            config.sharding.devices = options.topology
        if options.tasks:
            choose_tasks(config, options.tasks)
        if options.sweep:
            written, data, good = _swept(config, name)
        else:
            written, data, good = _one(config, name)
    except (ValueError, FileNotFoundError) as error:
        print(f"launch.compile: {error}", file=sys.stderr)
        sys.exit(2)
    print(written)
    if options.out:
        out = pathlib.Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_name(out.name + ".md").write_text(written)
        out.with_name(out.name + ".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    sys.exit(0 if good else 2)


def _one(config: ml_collections.ConfigDict, name: str) -> tuple[str, Any, bool]:
    """The report of one program as text and as JSON, and whether it fits."""
    options = flags.FLAGS
    if options.schedule_only and (options.save or options.load):
        raise ValueError("--schedule_only makes no executable; leave out --save and --load")
    if options.chart:
        raise ValueError("--chart draws a sweep; give --sweep, or leave it out")
    found = compiled(
        config,
        program=options.program,
        name=name,
        chip=options.chip,
        load=options.load,
        schedule_only=options.schedule_only,
    )
    report = found.report
    print(f"lowered in {report.lower_seconds:.1f} s, compiled in {report.compile_seconds:.1f} s", flush=True)
    if options.text and found.text:
        pathlib.Path(options.text).write_text(found.text)
    if options.save and found.program is not None:
        devices = list(found.run.mesh.devices.flat)
        size = executables.save(options.save, found.program, devices, name=options.program, config=config)
        print(f"executable in {options.save}: {readable(size)}")
    written = markdown(report, command=command(sys.argv[1:]))
    if options.explain:
        written += "\n" + explain(found.run, found.job, report, kept(found.job, found.run))
    return written, report.to_json(), fits(report)


def _swept(config: ml_collections.ConfigDict, name: str) -> tuple[str, Any, bool]:
    """The same for all combinations of a sweep."""
    options = flags.FLAGS
    if single := [f"--{name}" for name in ("save", "load", "text", "explain") if getattr(options, name)]:
        raise ValueError(f"{' and '.join(single)}: for one program, a sweep has many; leave out either")
    counted: dict[str, float] = {}

    def report(one: ml_collections.ConfigDict) -> Report:
        # Operations that the model needs depend on nothing that strategies, slices and schedules change.
        same = one.to_dict()
        same = json.dumps([same["model"], same["data"], same["optimizer"], same["eval"]], default=str)
        flops = counted.get(same)
        found = compiled(
            one,
            program=options.program,
            name=name,
            chip=options.chip,
            flops=flops,
            schedule_only=options.schedule_only,
        ).report
        counted[same] = found.model_flops
        return found

    ranking = sweep(config, options.sweep, report)
    if options.chart:
        path = pathlib.Path(options.chart)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(chart(ranking, f"{options.program}: {name} on {config.sharding.devices or 'slices'}"))
    data = [(name, found if isinstance(found, str) else found.to_json()) for name, found in ranking]
    head = f"    {command(sys.argv[1:])}\n\n"
    return head + text(ranking), data, any(fits(found) for _, found in ranking)


def command(arguments: list[str]) -> str:
    """The command that prints the same, without the files that this one wrote."""
    files = ("--out", "--text", "--save", "--chart")
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip or name in files:
            skip = not skip and not equals
            continue
        kept.append(argument)
    options = " ".join(tpu_flags.own())
    before = [f"{tpu_flags.VARIABLE}={shlex.quote(options)}"] if options else []
    return " ".join([*before, shlex.join(["python", "-m", "launch.compile", *kept])])


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
    flags.DEFINE_string("program", "train", "What to compile: train, generate, or the name of a decoder.")
    flags.DEFINE_list("tasks", [], "Tasks of the mixture that the batch has; all if not given.")
    flags.DEFINE_string("chip", "", "Chip whose speed a CPU topology is judged by: v4, v5e, v5p, v6e.")
    flags.DEFINE_string("out", "", "Writes OUT.md and OUT.json.")
    flags.DEFINE_string("text", "", "Writes the compiled program as the compiler prints it.")
    flags.DEFINE_string("save", "", "Writes the executable.")
    flags.DEFINE_string("load", "", "Reports on this executable instead of compiling.")
    flags.DEFINE_bool("explain", False, "Also says which parts of the model cost most.")
    flags.DEFINE_bool("schedule_only", False, "Ends before machine code is made; for TPU topologies.")
    flags.DEFINE_multi_string("sweep", [], "key=value|value|...: compiles all combinations, ranks them.")
    flags.DEFINE_string("chart", "", "Draws the sweep, as SVG.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("config")
    exits.run(main)
