# SPDX-License-Identifier: Apache-2.0
"""How fast a compiled program can be on a chip: between its worst resource alone and all of them in turn.

An estimate from public peaks, not a measurement: no product reaches the peak, no link its rated speed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from vllm2_jax.sharding.chips import Chip
from vllm2_jax.sharding.collectives import Collective
from vllm2_jax.sharding.costs import Work


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run of the program.

    Attributes:
      compute: all products at the peak.
      memory: all traffic at the bandwidth of the main memory.
      device: both as they follow each other: every instruction takes the longer of its two.
      ici: all collectives inside a slice, one after the other.
      dcn: all collectives between slices.
    """

    compute: float
    memory: float
    device: float
    ici: float
    dcn: float

    @property
    def best(self) -> float:
        """All communication runs beside the computation."""
        return max(self.device, self.memory, self.ici, self.dcn)

    @property
    def worst(self) -> float:
        """None of it does."""
        return max(self.device, self.memory) + self.ici + self.dcn


def roofline(work: Sequence[Work], collectives: Sequence[Collective], chip: Chip, mesh: Mesh) -> Roofline:
    """Times of what `costs.work` and `collectives.collectives` found, on a mesh of these chips."""
    peak, bandwidth = chip.flops, chip.hbm_bandwidth

    def seconds(one: Work) -> float:
        return one.times * max(one.flops / peak, one.bytes / bandwidth)

    def talking(one: Collective) -> float:
        links = chip.links * dimensions(one.axes, chip, mesh) / chip.dims
        return one.sent / links

    outside = [one for one in collectives if one.kind.startswith("dcn")]
    inside = [one for one in collectives if not one.kind.startswith("dcn")]
    return Roofline(
        compute=sum((one.times * one.flops for one in work), 0.0) / peak,
        memory=sum((one.times * one.bytes for one in work), 0.0) / bandwidth,
        device=sum((seconds(one) for one in work if not one.beside), 0.0),
        ici=sum(map(talking, inside), 0.0),
        dcn=sum((one.sent for one in outside), 0.0) / chip.dcn,
    )


def dimensions(axes: Sequence[str], chip: Chip, mesh: Mesh) -> int:
    """Dimensions of the torus that a collective over mesh axes has links in; all where no device has a place.

    A ring uses both links of a dimension. Whether a dimension wraps round is left out: short ones do not.
    """
    first = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    devices = np.asarray(mesh.devices[first]).reshape(-1)
    if not hasattr(devices[0], "coords"):
        return chip.dims
    places = np.array([device.coords for device in devices])
    return max(1, int((places != places[0]).any(axis=0).sum()))
