# SPDX-License-Identifier: Apache-2.0
"""What the compiler says about a program for chips one does not have, as numbers and as text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from launch.build import Run
from launch.programs import Job, Weights
from launch.roofline import Roofline, roofline
from vllm2_jax.sharding.chips import Chip
from vllm2_jax.sharding.collectives import Total, collectives, totals
from vllm2_jax.sharding.costs import work
from vllm2_jax.sharding.mesh import count_slices
from vllm2_jax.sharding.partition import batch_shards, placements
from vllm2_jax.sharding.program import parse
from vllm2_jax.sharding.report import bytes_per_chip, readable


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      arguments: state and batch.
      outputs: the new state (which takes the place of the old one: `aliased`) and the metrics.
      temporaries: activations, gradients and whatever else lives while the program runs.
      code: the program itself; None if it was not made.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int | None

    @property
    def total(self) -> int:
        """All of it, what is shared counted once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + (self.code or 0)


@dataclasses.dataclass(frozen=True)
class Report:
    """One program on one slice.

    Attributes:
      title: config and topology.
      facts: what was compiled: mesh, strategy, batch, remat, ...
      devices: of the mesh.
      chip: facts of the chip, None for a CPU without `--chip`.
      memory: of a device; None if the program does not fit.
      state: bytes of weights and moments on a device, by their shardings.
      problem: what the compiler said where the program does not fit.
      model_flops: that the model needs in one run, on all devices.
      flops, bytes: products, and traffic with the main memory, of one device in one run.
      collectives: by kind and mesh axes.
      by_part: part of the model -> its share of flops, bytes and sent bytes on a device.
      times: roofline; None without a chip.
      unknown_loops: loops whose turns depend on data; they count once.
      lower_seconds, compile_seconds: on the machine that compiled.
    """

    title: str
    facts: Mapping[str, Any]
    devices: int
    chip: Chip | None
    memory: Memory | None
    state: Mapping[str, int]
    problem: str
    model_flops: float
    flops: float = 0.0
    bytes: float = 0.0
    collectives: Sequence[Total] = ()
    by_part: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    times: Roofline | None = None
    unknown_loops: int = 0
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0

    def mfu(self, seconds: float) -> float:
        """Model FLOP utilisation if a step took so long."""
        if self.chip is None:
            raise ValueError("utilisation needs a chip")
        return self.model_flops / (self.devices * self.chip.flops * seconds)

    @property
    def hbm(self) -> float:
        """Bytes of memory of a device."""
        return math.inf if self.chip is None else self.chip.hbm

    def to_json(self) -> dict[str, Any]:
        """Plain values; what follows from others is there too."""
        found = dataclasses.asdict(self)
        if self.memory is not None:
            found["memory"]["total"] = self.memory.total
        if self.times is not None:
            for name in ("best", "worst"):
                seconds = getattr(self.times, name)
                found["times"][name], found[f"mfu_{name}"] = seconds, self.mfu(seconds)
        return found


def weight_bytes(weights: Weights, mesh: Mesh) -> dict[str, int]:
    """Bytes of each part of a job's weights and moments on one device."""
    return {
        name: sum(bytes_per_chip(leaf, mesh) for leaf in placements(tree, mesh, rules))
        for name, (tree, rules) in weights.items()
    }


def check_weights(weights: Weights, mesh: Mesh, hbm: float) -> None:
    """Raises ValueError if weights and moments alone are more than a device holds; names what is largest."""
    found = weight_bytes(weights, mesh)
    if sum(found.values()) <= hbm:
        return
    by_module: dict[str, tuple[int, bool]] = {}
    for tree, rules in weights.values():
        for leaf in placements(tree, mesh, rules):
            module = _module(leaf.path)
            size, whole = by_module.get(module, (0, True))
            by_module[module] = size + bytes_per_chip(leaf, mesh), whole and not any(leaf.spec)
    module, (size, whole) = max(by_module.items(), key=lambda entry: entry[1][0])
    raise ValueError(
        f"the state takes {readable(sum(found.values()))} on each device, which has "
        f"{readable(int(hbm))}: {', '.join(f'{name} {readable(size)}' for name, size in found.items())}. "
        f"Largest is {module!r} with {readable(size)}"
        + (", whole on every device" if whole else "")
        + "; take a strategy that splits it (fsdp, fsdp_tp), a bigger slice, or train less of the model"
    )


def _module(path: str) -> str:
    """The sub-model that a leaf belongs to: "llm/layers", "vision", "decoders/unipose", ..."""
    keys = path.split("/")
    # ".../mu/llm/layers/..." of an optimizer -> the parameter's own path; "trace" is Muon's momentum
    keys = keys[next((i + 1 for i, key in enumerate(keys) if key in ("mu", "nu", "trace")), 0) :]
    return "/".join(keys[: 2 if keys[0] in ("decoders", "llm") else 1])


def memory_of(program: Any) -> Memory:
    """Of a `jax.stages.Compiled`."""
    stats = program.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def analyse(run: Run, text: str, chip: Chip | None) -> dict[str, Any]:
    """The fields of a `Report` that come out of a compiled program's text."""
    parsed = parse(text)
    done, unknown = work(parsed)
    slices = count_slices(list(run.mesh.devices.flat))
    talk = collectives(parsed, dict(run.mesh.shape), slices)
    parts: dict[str, dict[str, float]] = {}
    for one in done:
        entry = parts.setdefault(one.part, {"flops": 0.0, "bytes": 0.0, "sent": 0.0})
        entry["flops"] += one.times * one.flops
        entry["bytes"] += one.times * one.bytes
    for message in talk:
        entry = parts.setdefault(message.part, {"flops": 0.0, "bytes": 0.0, "sent": 0.0})
        entry["sent"] += message.sent
    return {
        "flops": sum((one.times * one.flops for one in done), 0.0),
        "bytes": sum((one.times * one.bytes for one in done), 0.0),
        "collectives": totals(talk),
        "by_part": dict(sorted(parts.items(), key=lambda entry: -entry[1]["flops"])),
        "times": None if chip is None else roofline(done, talk, chip, run.mesh),
        "unknown_loops": len(unknown),
    }


def markdown(report: Report, *, command: str = "") -> str:
    """The report as people read it, with the command that made it."""
    lines = [f"# {report.title}", "", *([f"    {command}", ""] if command else [])]
    lines += _table(("what", "value"), [(name, str(value)) for name, value in report.facts.items()])
    lines += ["", "## Memory of a device", ""]
    rows = [(name, readable(size)) for name, size in report.state.items()]
    if report.memory is None:
        lines += [*_table(("part", "size"), rows), "", f"**Does not fit.** {report.problem}"]
        return "\n".join(lines) + "\n"
    memory = report.memory
    rows += [
        ("arguments (state and batch)", readable(memory.arguments)),
        ("temporaries", readable(memory.temporaries)),
        ("code", "not made" if memory.code is None else readable(memory.code)),
        ("outputs beyond the donated state", readable(memory.outputs - memory.aliased)),
        ("**total**", f"**{readable(memory.total)}**"),
    ]
    if report.chip is not None:
        rows += [
            (f"memory of a {report.chip.name} device", readable(int(report.hbm))),
            ("headroom", readable(int(report.hbm - memory.total))),
        ]
    lines += _table(("part", "size"), rows)
    lines += ["", "## Work of one run", ""]
    useful = report.model_flops / report.devices
    lines += _table(
        ("what", "on a device"),
        [
            ("operations the model needs", f"{useful / 1e12:.4g} TFLOP"),
            (
                "operations of the program",
                f"{report.flops / 1e12:.4g} TFLOP ({report.flops / useful:.2f} times)",
            ),
            ("traffic with the main memory", readable(int(report.bytes))),
            ("sent to other devices", readable(int(sum(row.sent for row in report.collectives)))),
        ],
    )
    if report.unknown_loops:
        lines += ["", f"{report.unknown_loops} loops turn as often as the data wants; they count once."]
    lines += ["", "## Collectives", ""]
    lines += _table(
        ("kind", "over", "in the program", "runs", "sent by a device"),
        [
            (row.kind, ", ".join(row.axes), str(row.count), str(row.times), readable(int(row.sent)))
            for row in report.collectives
        ],
    )
    if report.times is not None:
        lines += ["", "## Roofline", "", *_times(report, report.times)]
    return "\n".join(lines) + "\n"


def _times(report: Report, times: Roofline) -> list[str]:
    def row(name: str, seconds: float) -> tuple[str, str, str]:
        return name, f"{seconds * 1e3:.4g} ms", f"{report.mfu(seconds):.1%}"

    rows = [
        (name, f"{seconds * 1e3:.4g} ms", "")
        for name, seconds in (
            ("products at the peak", times.compute),
            ("traffic with the main memory", times.memory),
            ("both, instruction by instruction", times.device),
            ("collectives inside a slice", times.ici),
            ("collectives between slices", times.dcn),
        )
    ]
    rows += [
        row("**all, communication beside computation**", times.best),
        row("**all, one after the other**", times.worst),
    ]
    return _table(("what", "time", "MFU"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def explain(run: Run, job: Job, report: Report, stored: Mapping[str, Sequence[jax.ShapeDtypeStruct]]) -> str:
    """What costs most: parameters by module, activations, work and communication by part of the model.

    Args:
      run, job, report: of one program.
      stored: `programs.kept`; all of them are split like the batch.
    """
    rows: dict[str, dict[str, int]] = {}
    for name, (tree, rules) in job.weights.items():
        for leaf in placements(tree, run.mesh, rules):
            if not leaf.shape:
                continue  # a counter
            entry = rows.setdefault(_module(leaf.path), dict.fromkeys(("numbers", *job.weights), 0))
            entry[name] += bytes_per_chip(leaf, run.mesh)
            entry["numbers"] += math.prod(leaf.shape) if name != "opt_state" else 0
    lines = ["## Parameters by module, on a device", ""]
    lines += _table(
        ("module", "numbers in all", *job.weights),
        [
            (module, f"{entry['numbers']:,}", *(readable(entry[name]) for name in job.weights))
            for module, entry in sorted(rows.items(), key=lambda row: -row[1]["numbers"])
        ],
    )
    shards = batch_shards(run.mesh, run.strategy.rules)
    if stored:
        lines += ["", "## Stored for the backward pass, on a device", ""]
        sizes = {part: [x.size * x.dtype.itemsize // shards for x in some] for part, some in stored.items()}
        lines += _table(
            ("part", "arrays", "size", "the largest"),
            [
                (part, str(len(some)), readable(sum(some)), f"{_shape(stored[part][0])}: {readable(some[0])}")
                for part, some in sorted(sizes.items(), key=lambda row: -sum(row[1]))
            ],
        )
    if report.by_part:
        lines += ["", "## Work by part, on a device", ""]
        lines += _table(
            ("part", "TFLOP", "traffic", "sent"),
            [
                (part, f"{x['flops'] / 1e12:.4g}", readable(int(x["bytes"])), readable(int(x["sent"])))
                for part, x in report.by_part.items()
            ],
        )
    return "\n".join(lines) + "\n"


def _shape(x: jax.ShapeDtypeStruct) -> str:
    return f"{x.dtype}[{', '.join(map(str, x.shape))}] in all"


def facts(run: Run, job: Job, config: Any) -> dict[str, Any]:
    """What was compiled."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    count = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, (tree, _) in job.weights.items()
        if name != "opt_state"
    }
    remat = {**config.remat, **_remat_of(config.model.decoders)}
    return {
        "devices": f"{run.mesh.size} in {count_slices(list(run.mesh.devices.flat))} slice(s)",
        "strategy": f"{config.sharding.strategy}: {sizes}",
        "parameters": ", ".join(f"{number:,} {_SAID.get(name, name)}" for name, number in count.items()),
        **job.facts,
        "remat": ", ".join(f"{part} {policy}" for part, policy in remat.items()),
        "attention": config.attention,
        "loss chunk": config.loss_chunk,
        "dtype": f"{config.dtype}, frozen {config.frozen_dtype}",
    }


_SAID = {"params": "trained", "frozen": "frozen", "weights": "in all"}


def _remat_of(decoders: Any) -> dict[str, str]:
    """What decoders keep, where their configs say it."""
    found = {}
    for name, sizes in decoders.items():
        if policy := sizes.get("remat") or sizes.get("unet", {}).get("remat"):
            found[name] = policy
    return found
