# SPDX-License-Identifier: Apache-2.0
"""The TPU slices that Cloud sells, by the names that its tools take ("v5p-128" has 128 cores: 64 chips).

Sources, read in November 2026: the pages v4, v5e, v5p, v6e and "TPU software versions" of Google's Cloud TPU
documentation (docs.cloud.google.com/tpu/docs); each size is listed with the shape it has by default.
"""

import dataclasses
import math

from vllm2_jax.sharding.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class Family:
    """One generation.

    Attributes:
      prefix: of the names.
      cores: what one chip counts in a name.
      runtime: software version of its virtual machines.
      shapes: chips along each side, one entry for each size.
    """

    prefix: str
    cores: int
    runtime: str
    shapes: tuple[str, ...]


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

FAMILIES: dict[str, Family] = {
    "v4": Family("v4", 2, "tpu-ubuntu2204-base", _CUBES),
    "v5e": Family("v5litepod", 1, "v2-alpha-tpuv5-lite", _SQUARES),
    "v5p": Family("v5p", 2, "v2-alpha-tpuv5", (*_CUBES, "16x16x16", "16x16x24")),
    "v6e": Family("v6e", 1, "v2-alpha-tpuv6e", _SQUARES),
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One size of one generation.

    Attributes:
      name: what `gcloud` and `xpk` call it.
      chips: in a slice.
      topology: what `launch.compile` calls it.
      runtime: software version of its virtual machines.
    """

    name: str
    chips: int
    topology: str
    runtime: str


def _table() -> dict[str, Accelerator]:
    table = {}
    for chip, family in FAMILIES.items():
        for shape in family.shapes:
            chips = math.prod(int(side) for side in shape.split("x"))
            name = f"{family.prefix}-{chips * family.cores}"
            table[name] = Accelerator(name, chips, f"{chip}:{shape}", family.runtime)
    return table


ACCELERATORS = _table()
assert FAMILIES.keys() == CHIPS.keys()


def find_accelerator(name: str) -> Accelerator:
    """Looks `name` up in `ACCELERATORS`.

    Raises:
      ValueError: no such slice; lists the sizes of the generation that the name begins with, or all.
    """
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    prefix = name.partition("-")[0]
    # People say v5e where Cloud says v5litepod.
    prefix = FAMILIES[prefix].prefix if prefix in FAMILIES else prefix
    near = [known for known in ACCELERATORS if known.startswith(f"{prefix}-")]
    raise ValueError(f"unknown accelerator {name!r}; there are {', '.join(near or ACCELERATORS)}")
