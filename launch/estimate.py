# SPDX-License-Identifier: Apache-2.0
"""What the TPU compiler says about a program, without a TPU: memory, traffic, cycles."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding


def estimate(run: Callable, arguments: Any, chip: str) -> dict[str, float]:
    """Compiles `run(*arguments)` for one chip of a topology such as "v5e:2x2".

    Returns:
      "temporary MiB" beside inputs and outputs; "accessed MiB" and "million cycles" by the compiler's cost
      models. Bytes count the body of a loop once; cycles count every turn, but gathers, scatters and sorts
      not at all, for the compiler has no estimate for them.
    """
    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    sharding = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    program = jax.jit(run).lower(*shapes).compile()
    memory, costs, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    if memory is None or costs is None or text is None:
        raise RuntimeError(f"the compiler for {chip} gives no estimates; install the libtpu of jax[tpu]")
    return {
        "temporary MiB": memory.temp_size_in_bytes / 2**20,
        "accessed MiB": costs["bytes accessed"] / 2**20,
        "million cycles": cycles(text) / 1e6,
    }


def cycles(text: str) -> int:
    """Sum of the estimates in a compiled program's text, loops as often as they turn."""
    bodies = re.split(r"\n(?=%|ENTRY)", text)
    by_name = {match[1]: body for body in bodies if (match := re.match(r"(?:ENTRY )?(%[\w.\-]+)", body))}
    entry = next(body for body in bodies if body.startswith("ENTRY"))

    def count(body: str) -> int:
        total = sum(int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', body))
        for condition, turn in re.findall(r" while\(.*?condition=(%[\w.\-]+), body=(%[\w.\-]+)", body):
            # A scan's condition compares its counter with the number of turns, the only constant there is.
            (turns,) = re.findall(r"constant\((\d+)\)", by_name[condition])
            total += int(turns) * count(by_name[turn])
        return total

    return count(entry)
