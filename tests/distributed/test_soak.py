# SPDX-License-Identifier: Apache-2.0
"""2,000 steps of two processes with ten kills at random times: `make test-soak`, about ten minutes."""

import random
import signal
import time

import pytest

from tests.distributed.crew import Crew, losses, records, steps_written
from tests.distributed.survivor import GROUPS

STEPS, KILLS, SAVE_EVERY = 2000, 10, 50


@pytest.mark.soak
def test_ten_kills(tmp_path, capsys):
    def show(text: str) -> None:
        with capsys.disabled():
            print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)

    begin, draw = time.monotonic(), random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Crew(whole, 2, STEPS, save_every=SAVE_EVERY) as crew:
        assert crew.wait(900) == [0, 0], crew.said()
    show(f"undisturbed: {STEPS} steps, last loss {losses(whole)[STEPS]:.6f}")

    for number, step in enumerate(sorted(draw.sample(range(20, STEPS - 20), KILLS)), start=1):
        victim, delay = draw.randrange(2), draw.random() * 0.1
        with Crew(killed, 2, STEPS, save_every=SAVE_EVERY) as crew:
            crew.wait_for_step(step, 900)
            time.sleep(delay)
            crew.members[victim].kill()
            hit = time.monotonic()
            codes = crew.wait()
            other = time.monotonic() - hit
        assert codes[victim] == -signal.SIGKILL and 0 not in codes, crew.said()
        last = max(losses(killed))
        show(f"kill {number:2}: process {victim} after step {last}; the other one ended {other:.1f} s later")
    with Crew(killed, 2, STEPS, save_every=SAVE_EVERY) as crew:
        assert crew.wait(900) == [0, 0], crew.said()

    again = len(steps_written(killed)) - STEPS
    show(f"killed: {STEPS} steps and {again} done again, last loss {losses(killed)[STEPS]:.6f}")
    assert 0 < again <= KILLS * (SAVE_EVERY + 20)
    assert losses(killed) == losses(whole)  # every one of 2,000, to the last bit
    fed = records(killed)
    assert fed == records(whole)
    assert set(fed) == {(batch, group) for batch in range(1, STEPS + 1) for group in range(GROUPS)}
    count = sum(len(texts) for line in fed.values() for texts in line.values())
    show(f"{count} records fed, in both runs the same ones in each group of each step")
