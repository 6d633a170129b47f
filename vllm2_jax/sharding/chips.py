# SPDX-License-Identifier: Apache-2.0
"""What a TPU chip can do, from public documents, for estimates of programs that nobody ran yet.

Sources: the pages v4, v5e, v5p and v6e of Google's Cloud TPU documentation (docs.cloud.google.com/tpu/docs),
read in November 2026: peak, HBM, bidirectional interconnect bandwidth (half of it is one way), network of a
pod or a chip. v4's six links of 50 GB/s are those of Jouppi et al., "TPU v4", arXiv 2304.01433.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts of one chip.

    Attributes:
      name: the first part of a topology's name.
      flops: peak in bfloat16, operations a second.
      hbm: bytes.
      hbm_bandwidth: bytes a second.
      links: bytes a second that all interconnect links together send one way.
      dims: dimensions of the torus; each has two links.
      dcn: bytes a second of the data-centre network, one way.
    """

    name: str
    flops: float
    hbm: int
    hbm_bandwidth: float
    links: float
    dims: int
    dcn: float


GIB = 2**30

CHIPS: dict[str, Chip] = {
    # The v4 page gives no network bandwidth; this is a 200 Gbps card for the four chips of a host.
    "v4": Chip("v4", 275e12, 32 * GIB, 1200e9, 300e9, 3, 6.25e9),
    "v5e": Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9, 2, 3.125e9),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2765e9, 600e9, 3, 6.25e9),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1600e9, 400e9, 2, 12.5e9),
}

# What jax calls their devices.
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}


def chip_of(devices: Sequence[Any]) -> Chip | None:
    """The chip that devices belong to; None for a CPU, whose speed nobody plans with."""
    kind = devices[0].device_kind
    return CHIPS[KINDS[kind]] if kind in KINDS else None


def find_chip(name: str) -> Chip:
    """Looks `name` up in `CHIPS`; raises ValueError with the known names."""
    if name not in CHIPS:
        raise ValueError(f"unknown chip {name!r}; choose one of {', '.join(CHIPS)}")
    return CHIPS[name]
