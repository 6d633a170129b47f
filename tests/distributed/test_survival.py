# SPDX-License-Identifier: Apache-2.0
"""What ends a run, and that it goes on as if nothing had happened: `make test-survival`.

The small model on the real data pipeline (two datasets mixed, records that cannot be read, packed text), on
two and four processes. Each test ends a run in some way, starts it again, and compares losses and the log of
records that were fed with those of a run that nothing happened to.
"""

import os
import pathlib
import signal

import pytest

from tests.distributed.crew import Crew, losses, records, steps_written
from tests.distributed.survivor import GROUPS, survive
from vllm2_jax.train import metrics
from vllm2_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.survival
STEPS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing happens to, by the number of their processes."""
    made = {}

    def of(processes):
        if processes not in made:
            made[processes] = tmp_path_factory.mktemp(f"whole{processes}")
            with Crew(made[processes], processes, STEPS) as crew:
                assert crew.wait() == [0] * processes, crew.said()
        return made[processes]

    return of


def assert_continues(folder, whole, *, exactly: bool):
    """Losses and records are those of `whole`, whatever happened in between."""
    want, found = losses(whole), losses(folder)
    assert list(found) == list(range(1, STEPS + 1))
    assert len(set(want.values())) == STEPS
    assert found == (want if exactly else pytest.approx(want, rel=1e-5))
    fed = records(folder)
    assert fed == records(whole)
    assert set(fed) == {(batch, group) for batch in range(1, STEPS + 1) for group in range(GROUPS)}


def checkpoints(folder) -> list[int]:
    """Steps whose checkpoints count."""
    with Checkpoints(folder / "checkpoints") as saved:
        return sorted(saved._manager.all_steps())


@pytest.mark.parametrize("processes, victim", [(2, 1), (2, 0), (4, 2)])
def test_killed_in_a_step(whole, tmp_path, processes, victim):
    with Crew(tmp_path, processes, STEPS, faults={victim: {"kill": 7}}) as crew:
        codes = crew.wait()
    assert codes[victim] == -signal.SIGKILL and 0 not in codes
    assert checkpoints(tmp_path) == [4]
    with Crew(tmp_path, processes, STEPS) as crew:
        assert crew.wait() == [0] * processes, crew.said()
    assert_continues(tmp_path, whole(processes), exactly=True)


@pytest.mark.parametrize("processes, victim", [(2, 0), (2, 1), (4, 3)])
def test_killed_in_a_checkpoint(whole, tmp_path, processes, victim):
    with Crew(tmp_path, processes, STEPS, faults={victim: {"kill_saving": 8}}) as crew:
        codes = crew.wait()
    assert codes[victim] == -signal.SIGKILL and 0 not in codes
    assert checkpoints(tmp_path) == [4]
    assert list((tmp_path / "checkpoints").glob("8.*tmp*"))  # it had been begun
    with Crew(tmp_path, processes, STEPS) as crew:
        assert crew.wait() == [0] * processes, crew.said()
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert_continues(tmp_path, whole(processes), exactly=True)


@pytest.mark.parametrize("processes, told", [(2, [0, 1]), (4, [0, 1, 2, 3]), (4, [2])])
def test_sigterm(whole, tmp_path, processes, told):
    with Crew(tmp_path, processes, STEPS, save_every=100, slow=0.3) as crew:
        crew.wait_for_step(3)
        for number in told:
            crew.members[number].send_signal(signal.SIGTERM)
        assert crew.wait() == [0] * processes, crew.said()
    (saved,) = checkpoints(tmp_path)
    assert 3 < saved == max(losses(tmp_path)) < STEPS
    with Crew(tmp_path, processes, STEPS) as crew:
        assert crew.wait() == [0] * processes, crew.said()
    assert steps_written(tmp_path) == list(range(1, STEPS + 1))  # none is lost, none is done twice
    assert_continues(tmp_path, whole(processes), exactly=True)


def test_resumed_by_other_numbers_of_processes_and_strategies(whole, tmp_path):
    with Crew(tmp_path, 4, STEPS, faults={1: {"kill": 6}}) as crew:
        assert 0 not in crew.wait()
    with Crew(tmp_path, 2, STEPS, mesh="dp", devices=2, faults={0: {"kill": 10}}) as crew:
        assert 0 not in crew.wait()
    survive(str(tmp_path), "fsdp_tp", STEPS, devices="cpu:4")
    assert [step for step in steps_written(tmp_path) if step in (5, 9)] == [5, 5, 9, 9]
    assert_continues(tmp_path, whole(4), exactly=False)


def test_sigterm_reaches_worker_processes_too(whole, tmp_path):
    with Crew(tmp_path, 2, STEPS, save_every=100, slow=0.3, workers=2, session=True) as crew:
        crew.wait_for_step(3)
        for member in crew.members:  # each with the processes that read for it
            os.killpg(member.pid, signal.SIGTERM)
        assert crew.wait() == [0, 0], crew.said()
    assert checkpoints(tmp_path) == [max(losses(tmp_path))]
    with Crew(tmp_path, 2, STEPS, workers=1) as crew:
        assert crew.wait() == [0, 0], crew.said()
    assert_continues(tmp_path, whole(2), exactly=True)


def test_a_read_that_hangs_ends_all(tmp_path):
    stuck = {"stuck": 100, "timeout": 5.0}  # stands for a host whose storage hangs
    with Crew(tmp_path, 2, 1000, save_every=4, faults={1: stuck}) as crew:
        assert crew.wait() == [4, 4], crew.said()
    mine, other = crew.errors[1].read_text(), crew.errors[0].read_text()
    assert "stands still: no batch for " in mine.partition("StalledError")[0]  # warned of before
    assert "StalledError" in other and "ended with process 1 of 2 on host" in other
    assert "being read: record 100 of the dataset 'chat/read'" in other and "config.data.timeout" in other
    assert checkpoints(tmp_path)
    with Crew(tmp_path, 2, max(checkpoints(tmp_path)) + 8) as crew:  # the storage is back
        assert crew.wait() == [0, 0], crew.said()


def test_a_dead_worker_process_ends_all(tmp_path):
    # Time enough for the workers to start on a busy machine, each of them imports all readers.
    with Crew(tmp_path, 2, 100_000, save_every=10**6, workers=2, timeout=60.0) as crew:
        crew.wait_for_step(3)
        threads = pathlib.Path(f"/proc/{crew.members[1].pid}/task")  # each lists the children it started
        workers = [
            int(pid)
            for children in threads.glob("*/children")
            for pid in children.read_text().split()
            if "multiprocessing.spawn" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(workers[0], signal.SIGKILL)  # as the kernel does when memory runs out
        codes = crew.wait()
    # Killed while it wrote to its pipe, it leaves the reader waiting: then the time limit ends the run.
    assert codes in ([1, 1], [4, 4]), crew.said()
    wanted = {
        1: "terminated unexpectedly with exit code -9",
        4: "2 worker processes, 1 alive, make them",
    }
    assert wanted[codes[0]] in crew.errors[0].read_text()


def test_a_step_that_is_not_finite_is_skipped_by_both(tmp_path):
    bad = [5]  # of the numbered batches, the sixth; only the group of the first process is bad
    with Crew(tmp_path / "pair", 2, STEPS, faults={0: {"bad": bad}, 1: {"bad": []}}) as crew:
        assert crew.wait() == [0, 0], crew.said()
    survive(str(tmp_path / "alone"), "fsdp", STEPS, devices="cpu:2", bad=bad)
    pair, alone = losses(tmp_path / "pair"), losses(tmp_path / "alone")
    assert pair == pytest.approx(alone, rel=1e-5)
    finite = {line["step"]: line["finite"] for line in metrics.read(tmp_path / "pair") if "finite" in line}
    assert [step for step, value in finite.items() if not value] == [6]
    assert list(pair) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_in_a_checkpoint(whole, tmp_path, victim):
    with Crew(tmp_path, 2, STEPS, faults={victim: {"small_files": 7}}) as crew:
        assert crew.wait() == [4, 4], crew.said()
    said = crew.errors[victim].read_text()
    assert "the checkpoint of step 8 could not be written to" in said, said
    assert "File too large" in said and "Whole are those of the steps [4]: make room" in said
    assert "the checkpoint of step 8 could not be written" in crew.errors[1 - victim].read_text()
    assert checkpoints(tmp_path) == [4]
    with Crew(tmp_path, 2, STEPS) as crew:
        assert crew.wait() == [0, 0], crew.said()
    assert_continues(tmp_path, whole(2), exactly=True)
