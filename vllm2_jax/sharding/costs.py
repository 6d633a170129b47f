# SPDX-License-Identifier: Apache-2.0
"""What one device does in a compiled program: operations, and traffic with its memory.

Only matrix products, convolutions and attention kernels count as operations, as everywhere in the field.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from vllm2_jax.sharding.program import Computation, Instruction, Program

# Instructions that move nothing themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *(
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "opt-barrier",
        "send",
        "send-done",
        "recv",
        "recv-done",
    ),
}
_COLLECTIVE = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Instructions that change a part of their first operand where it lies -> the operand that says with what.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}

# Splash attention: matrix products of a kernel for each pair of a query block and a key block. Forward:
# scores, values. The backward pass computes the scores again in both of its kernels.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one instruction does in one run of the program, on one device.

    Attributes:
      part: of the model, see `part_of`.
      times: how often the instruction runs.
      flops: of its products, once.
      bytes: that it reads from and writes to the main memory, once; what stays on the chip does not count.
      beside: it runs beside others (a copy that was started early).
    """

    part: str
    times: int
    flops: float
    bytes: float
    beside: bool


def work(program: Program) -> tuple[list[Work], list[str]]:
    """Everything that computes or moves memory, and the loops whose turns are not known (counted once)."""
    alone, unknown = program.executions()
    # What runs beside others is a computation of its own, whose traffic its start already counts.
    started = {
        called
        for name in alone
        for instruction in program.computations[name].values()
        if instruction.opcode == "async-start"
        for called in program.called(instruction)
    }
    found = []
    for name, times in alone.items():
        computation = program.computations[name]
        for instruction in computation.values():
            one = Work(
                part=part_of(instruction, program),
                times=times,
                flops=flops(instruction, computation, program),
                bytes=0.0 if name in started else memory_traffic(instruction, computation, program),
                beside=instruction.opcode.endswith("-start"),
            )
            if one.flops or one.bytes:
                found.append(one)
    return found, unknown


def part_of(instruction: Instruction, program: Program) -> str:
    """The part of the model whose code an instruction comes from: "llm", "vision", "decoders/unipose", ...

    The outermost file that belongs to a part decides, so that attention counts for the one who calls it.
    Instructions that the compiler made up have no file: "other".
    """
    return part_of_files(program.frames.get(instruction.frame, ()))


def part_of_files(files: Iterable[str]) -> str:
    """`part_of` from the files of a stack of calls, the outermost first."""
    for file in files:
        found = re.search(r"vllm2_jax/(vision|llm|decoders/\w+|links|train/optimizer)\b", file)
        if found:
            return found[1]
        if "/optax/" in file:
            return "train/optimizer"
    return "other"


def flops(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Multiplications and additions of one instruction, in a fusion those of its body; only of products."""
    if instruction.opcode == "fusion":
        bodies = [program.computations[name] for name in program.called(instruction)]
        return sum((flops(inner, body, program) for body in bodies for inner in body.values()), 0.0)
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].leaves[0].shape
        summed = [left[i] for i in _numbers(instruction.rest, "lhs_contracting_dims")]
        return 2.0 * math.prod(instruction.leaves[0].shape) * math.prod(summed)
    if instruction.opcode == "convolution":
        return _convolution(instruction, computation)
    if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.rest:
        return _kernel(instruction, computation)
    return 0.0


def _numbers(text: str, key: str) -> list[int]:
    found = re.search(rf"{key}=\{{([\d,]*)\}}", text)
    return [int(x) for x in found[1].split(",") if x] if found else []


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """Products with zeros of the border do not count: TPUs run batched products as padded convolutions."""
    left, right = (computation[name].leaves[0].shape for name in instruction.operands[:2])
    out = instruction.leaves[0].shape
    (labels,) = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    spatial = [label for label in labels[2] if label.isdigit()]
    options = dict(item.split("=") for item in window[1].split()) if window else {}

    def option(key: str, default: str) -> list[str]:
        return options[key].split("x") if key in options else [default] * len(spatial)

    pads, strides = option("pad", "0_0"), option("stride", "1")
    left_dilations, right_dilations = option("lhs_dilate", "1"), option("rhs_dilate", "1")
    pairs = 1
    for i, label in enumerate(sorted(spatial)):
        pairs *= valid_pairs(
            left[labels[0].index(label)],
            right[labels[1].index(label)],
            out[labels[2].index(label)],
            stride=int(strides[i]),
            pad=int(pads[i].split("_")[0]),
            dilation=(int(left_dilations[i]), int(right_dilations[i])),
        )
    features = right[labels[1].index("i")] * out[labels[2].index("f")]
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    rows = left[labels[0].index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    return 2.0 * rows * features * pairs


def valid_pairs(
    inputs: int, kernel: int, outputs: int, *, stride: int, pad: int, dilation: tuple[int, int] = (1, 1)
) -> int:
    """Along one side: pairs of an output and a kernel cell that meet an input, not border or dilation."""
    place = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation[1] - pad
    return int(((place >= 0) & (place < (inputs - 1) * dilation[0] + 1) & (place % dilation[0] == 0)).sum())


def _kernel(instruction: Instruction, computation: Computation) -> float:
    """Splash attention from its first three arrays with heads: q [H, T, D] and k, v [K, S, D].

    Square causal kernels (T = S) leave out the blocks behind the diagonal. The text does not say which
    kernels are causal, but only those whose grid is packed carry their mask in three arrays of block numbers.
    """
    products = next((n for name, n in KERNELS.items() if instruction.name.startswith(name)), 0)
    if not products:
        return 0.0
    shapes = [computation[name].leaves[0].shape for name in instruction.operands]
    (*rows, length, width), keys, *_ = [shape for shape in shapes if len(shape) >= 3 and shape[-1] >= 64]
    return 2.0 * products * math.prod(rows) * length * keys[-2] * width * _share(shapes)


def _share(shapes: Sequence[tuple[int, ...]]) -> float:
    """Part of all pairs of blocks that a splash kernel visits."""
    blocks = next((shape for shape in shapes if len(shape) >= 2 and shape[-1] < 64), None)
    if blocks is None:
        return 1.0
    columns, rows = blocks[-1], blocks[-2]
    return (columns + 1) / (2 * columns) if columns == rows else 1.0


def memory_traffic(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Bytes that an instruction outside of fusions moves from and to the main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")) or opcode.startswith(_COLLECTIVE):
        return 0.0
    inputs = [computation[name] for name in instruction.operands]
    if opcode == "fusion":
        body = program.computations[program.called(instruction)[0]]
        return _fusion_traffic(inputs, body, program)
    if opcode == "async-start":
        return _async_traffic(instruction, inputs, program)
    outputs = instruction.leaves[:1] if opcode.endswith("-start") else instruction.leaves
    if opcode in _IN_PLACE:
        return 2.0 * _main(inputs[_IN_PLACE[opcode]])
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2.0 * sum(leaf.size for leaf in outputs if not leaf.space)
    written = sum(leaf.size for leaf in outputs if not leaf.space)
    return float(written + sum(_main(source) for source in inputs))


def _async_traffic(instruction: Instruction, inputs: Sequence[Instruction], program: Program) -> float:
    """An instruction that runs beside others: its result holds the inputs, the output, then the context.

    Weights come to the chip in slices, each of which reads its part only.
    """
    body = program.computations[program.called(instruction)[0]]
    (kind,) = (inner.opcode for inner in body.values() if inner.root)
    if kind.startswith(_COLLECTIVE):
        return 0.0
    output = instruction.leaves[sum(len(source.leaves) for source in inputs)]
    cut = kind in ("slice", "dynamic-slice")
    read = min(output.size, _main(inputs[0])) if cut else sum(map(_main, inputs))
    return float(read + (0 if output.space else output.size))


def _main(instruction: Instruction) -> int:
    return sum(leaf.size for leaf in instruction.leaves if not leaf.space)


def _fusion_traffic(inputs: Sequence[Instruction], body: Computation, program: Program) -> float:
    """A fusion reads of its inputs what its body uses (often one layer of a stack), and writes its root."""
    users = _users(body)
    moved = 0.0
    for instruction in body.values():
        if instruction.opcode == "parameter":
            source = inputs[int(instruction.argument)]
            moved += min(_main(source), _read(instruction, users, program))
        if instruction.root:
            roots = [body[name] for name in instruction.operands] if instruction.opcode == "tuple" else None
            leaves = instruction.leaves
            for root, leaf in zip(roots or [instruction], leaves, strict=False):
                moved += 0 if leaf.space else _written(root, leaf.size, body, program)
    return moved


def _users(body: Computation) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    for instruction in body.values():
        for name in instruction.operands:
            found.setdefault(name, []).append(instruction)
    return found


def _read(instruction: Instruction, users: dict[str, list[Instruction]], program: Program) -> float:
    """Bytes of a value that its users inside a fusion look at."""
    read = 0.0
    whole = sum(leaf.size for leaf in instruction.leaves)
    for user in users.get(instruction.name, []):
        first = user.operands[0] == instruction.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            read += sum(leaf.size for leaf in user.leaves)
        elif user.opcode == "bitcast":
            read += _read(user, users, program)
        elif user.opcode == "fusion":
            inner = program.computations[program.called(user)[0]]
            inside = _users(inner)
            places = [str(i) for i, name in enumerate(user.operands) if name == instruction.name]
            for parameter in inner.values():
                if parameter.opcode == "parameter" and parameter.argument in places:
                    read += _read(parameter, inside, program)
        elif (user.opcode in _IN_PLACE and first) or _passes(user):
            continue
        else:
            return float(whole)
    return min(read, float(whole))


def _passes(user: Instruction) -> bool:
    """Hands a buffer on, for a collective that runs beside the fusion or to the fusion's own result."""
    handed = user.opcode == "custom-call" and "AsyncCollective" in user.rest
    return handed or user.opcode == "tuple" or user.opcode.startswith(_COLLECTIVE)


def _written(root: Instruction, size: int, body: Computation, program: Program) -> float:
    while root.opcode == "bitcast":
        root = body[root.operands[0]]
    if root.opcode == "fusion":
        body = program.computations[program.called(root)[0]]
        (root,) = (inner for inner in body.values() if inner.root)
        return float(size) if root.opcode == "tuple" else _written(root, size, body, program)
    if root.opcode == "parameter" or _passes(root):
        return 0.0
    if root.opcode in _IN_PLACE:
        changed = sum(leaf.size for leaf in body[root.operands[_IN_PLACE[root.opcode]]].leaves)
        return float(2 * changed if root.opcode == "scatter" else changed)  # a scatter adds to what was there
    return float(size)
