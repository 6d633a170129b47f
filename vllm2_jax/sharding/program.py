# SPDX-License-Identifier: Apache-2.0
"""A compiled program's text as data: computations, instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here a body counts as often as its loop turns, which
the compiler either says (`known_trip_count`) or which is the constant in the loop's condition.
"""

import dataclasses
import functools
import math
import re

BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8},
    **{"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "token": 0},
}

_LEAF = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of an instruction's result.

    Attributes:
      dtype: XLA's name.
      shape: sizes.
      space: 0 is the main memory (HBM); others are on the chip, or the host's.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        """Bytes, without the padding of tiles."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = result opcode(operands), rest`; `operands` are names in the same computation."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    rest: str
    root: bool

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Arrays of the result."""
        found = []
        for dtype, sizes, layout in _LEAF.findall(self.result):
            space = re.search(r"S\((\d+)\)", layout)
            shape = tuple(int(size) for size in sizes.split(",") if size)
            found.append(Leaf(dtype, shape, int(space[1]) if space else 0))
        return tuple(found)

    @property
    def frame(self) -> int:
        """Number of its stack frame; 0 if the compiler made it up."""
        found = re.search(r"stack_frame_id=(\d+)", self.rest)
        return int(found[1]) if found else 0


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module.

    Attributes:
      computations: name -> its instructions by name, in order.
      entry: name of the one that runs first.
      frames: stack frame -> the files of its functions, the outermost first.
    """

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[str, ...]]

    def called(self, instruction: Instruction) -> list[str]:
        """Computations whose instructions run when this one does, loops aside."""
        if instruction.opcode in ("while", "reduce", "scatter", "sort", "map", "reduce-window"):
            return []
        found = _CALLED.findall(instruction.rest)
        for names in _BRANCHES.findall(instruction.rest):
            found += [name.strip().lstrip("%") for name in names.split(",")]
        collective = instruction.opcode.startswith(("all-reduce", "reduce-scatter", "select-and"))
        return [] if collective else found

    def executions(self) -> tuple[dict[str, int], list[str]]:
        """How often each computation runs that is not the body of a fusion, and the loops of unknown length.

        A loop whose turns depend on data counts one turn. Every branch of a conditional counts.
        """
        times: dict[str, int] = {}
        unknown: list[str] = []

        def visit(name: str, count: int) -> None:
            times[name] = times.get(name, 0) + count
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    turns = self.turns(instruction)
                    if turns is None:
                        unknown.append(instruction.name)
                    visit(_attribute(instruction, "body"), count * (1 if turns is None else turns))
                elif instruction.opcode != "fusion":
                    for called in self.called(instruction):
                        visit(called, count)

        visit(self.entry, 1)
        return times, unknown

    def bodies(self, instruction: Instruction) -> list[str]:
        """Computations inside of a fusion, those of fusions inside of it too."""
        if instruction.opcode != "fusion":
            return []
        found = self.called(instruction)
        inner = [name for body in found for i in self.computations[body].values() for name in self.bodies(i)]
        return found + inner

    def turns(self, loop: Instruction) -> int | None:
        """How often a `while` turns; None if that depends on data. Counters of scans start at 0."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if found:
            return int(found[1])
        condition = self.computations[_attribute(loop, "condition")]
        (root,) = (instruction for instruction in condition.values() if instruction.root)
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return None
        counter, limit = (condition[name] for name in root.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        return int(limit.argument)


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    # Metadata of kernels goes over several lines, of which the later ones start like this.
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%([\w.\-]+) \(", line)):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _instruction(line)):
            current[found.name] = found
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return Program(computations, entry, _frames(text))


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%([\w.\-]+) = ", line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    result, line = line[start:end], line[end:].lstrip()
    opcode, _, _ = line.partition("(")
    close = _closing(line, len(opcode))
    argument = line[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(head[2], result, opcode, operands, argument, line[close + 1 :], bool(head[1]))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return start + place.start()
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")


def _attribute(instruction: Instruction, name: str) -> str:
    (found,) = re.findall(rf"\b{name}=%([\w.\-]+)", instruction.rest)
    return found


def _frames(text: str) -> dict[int, tuple[str, ...]]:
    """Stack frame -> files, outermost first. The tables stand before the first computation."""
    tables: dict[str, dict[int, str]] = {}
    for name in ("FileNames", "FileLocations", "StackFrames"):
        section = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        lines = section[1].splitlines() if section else []
        tables[name] = {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines}

    def number(line: str, key: str) -> int:
        found = re.search(rf"{key}=(\d+)", line)
        return int(found[1]) if found else 0

    files = {
        place: tables["FileNames"].get(number(line, "file_name_id"), "").strip('"')
        for place, line in tables["FileLocations"].items()
    }
    frames: dict[int, tuple[str, ...]] = {0: ()}
    for frame, line in tables["StackFrames"].items():  # a parent stands before its children, one up
        parent = number(line, "parent_frame_id") - 1
        frames[frame] = (*frames.get(parent, ()), files.get(number(line, "file_location_id"), ""))
    return frames
