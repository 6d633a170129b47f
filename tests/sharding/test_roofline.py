# SPDX-License-Identifier: Apache-2.0
"""Times and utilisation of a program, from numbers that a person can follow."""

import dataclasses
import types

import numpy as np
import pytest

from launch.compile_report import Memory, Report
from launch.roofline import Roofline, dimensions, roofline
from vllm2_jax.sharding.chips import Chip
from vllm2_jax.sharding.collectives import Collective
from vllm2_jax.sharding.costs import Work

# 100 operations, 10 bytes of memory, 8 bytes over four links and 2 bytes between slices a second.
CHIP = Chip("toy", flops=100.0, hbm=1000, hbm_bandwidth=10.0, links=8.0, dims=2, dcn=2.0)


def torus(rows: int, columns: int):
    """A mesh whose axes are the dimensions of a torus."""
    places = [[types.SimpleNamespace(coords=(x, y)) for y in range(columns)] for x in range(rows)]
    return types.SimpleNamespace(axis_names=("data", "model"), devices=np.array(places))


def test_instructions_and_messages_take_the_time_of_what_they_need():
    work = [
        Work("llm", times=3, flops=200.0, bytes=10.0, beside=False),  # 3 x 2 s, 3 x 1 s of memory
        Work("llm", times=1, flops=0.0, bytes=50.0, beside=False),  # 5 s
        Work("other", times=2, flops=0.0, bytes=20.0, beside=True),  # 2 x 2 s, but beside the others
    ]
    talk = [
        Collective("all-gather", ("data",), 4, 2, 16, "llm"),  # 2 x 3/4 x 16 bytes over 2 of the 4 links
        Collective("all-reduce", ("data", "model"), 8, 1, 16, "llm"),  # 2 x 7/8 x 16 bytes over all
        Collective("dcn all-reduce", ("slices",), 2, 1, 4, "llm"),  # 2 x 1/2 x 4 bytes
    ]
    found = roofline(work, talk, CHIP, torus(4, 2))
    assert found == Roofline(compute=6.0, memory=12.0, device=11.0, ici=24 / 4 + 28 / 8, dcn=2.0)
    assert (found.best, found.worst) == (12.0, 12.0 + 9.5 + 2.0)


@pytest.mark.parametrize("slowest", ["device", "memory", "ici", "dcn"])
def test_the_best_is_what_takes_longest(slowest):
    times = Roofline(compute=0.5, memory=1.0, device=1.0, ici=1.0, dcn=1.0)
    assert dataclasses.replace(times, **{slowest: 7.0}).best == 7.0


def test_an_axis_has_links_in_the_dimensions_that_it_crosses():
    assert dimensions(("data",), CHIP, torus(4, 2)) == 1
    assert dimensions(("data", "model"), CHIP, torus(4, 2)) == 2
    assert dimensions(("data",), CHIP, torus(1, 2)) == 1  # one device: nothing is sent
    placeless = types.SimpleNamespace(axis_names=("data",), devices=np.array([object()] * 4))
    assert dimensions(("data",), CHIP, placeless) == 2


def test_utilisation_is_of_all_devices():
    times = Roofline(compute=1.0, memory=2.0, device=2.0, ici=3.0, dcn=0.0)
    memory = Memory(arguments=100, outputs=60, aliased=50, temporaries=30, code=7)
    report = Report(
        "", {}, devices=4, chip=CHIP, memory=memory, state={}, problem="", model_flops=600.0, times=times
    )
    found = report.to_json()
    assert report.mfu(3.0) == found["mfu_best"] == 600 / (4 * 100 * 3)
    assert found["mfu_worst"] == 600 / (4 * 100 * 5)
    assert (found["times"]["best"], found["times"]["worst"], found["memory"]["total"]) == (3.0, 5.0, 147)
