# SPDX-License-Identifier: Apache-2.0
"""The loop: bit-exact resume, also on another mesh; stopping, hooks, and runs that go wrong."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from tests.train.small import Small, make_small
from tests.train.stream import batches, run
from vllm2_jax.nn.layers import param
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.train import checkpoint, loop, metrics
from vllm2_jax.train.checkpoint import (
    Checkpoints,
    SaveError,
    is_finished,
    load_weights,
    save_weights,
    saved_tree,
    stored_config,
    whole_steps,
)
from vllm2_jax.train.exporting import Source
from vllm2_jax.train.monitor import NotFiniteError

ROOT = pathlib.Path(__file__).parents[2]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Eight steps in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(run(workdir, 8))


def test_resume_is_bit_exact(whole, tmp_path, monkeypatch):
    run(tmp_path, 4)
    monkeypatch.setattr(loop, "is_finished", pytest.fail)  # a run that goes on waits for nobody
    # Its own checkpoint wins over those that a first start began with.
    state = run(tmp_path, 8, resume="gone", weights="gone", wait=True)
    assert state.step == 8
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_weights_are_finished_with_the_last_step(whole, tmp_path, monkeypatch):
    run(tmp_path / "run", 4)
    monkeypatch.setattr(checkpoint, "_Manager", None)  # it would wait for the other processes
    assert not is_finished(tmp_path / "run") and is_finished(whole[0])
    assert not is_finished(tmp_path / "converted")
    save_weights(tmp_path / "converted", Small(rngs=Rngs(0)))
    assert is_finished(tmp_path / "converted")


def test_the_step_that_is_looked_at_may_go(whole, tmp_path, monkeypatch):
    """A run that keeps one step deletes it when the next one is whole."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole[0] / "checkpoints" / "8", folder / "7")

    def read(step):
        if step.name == "7":
            (folder / "7").rename(folder / "8")
        return stored_config(step)

    monkeypatch.setattr(checkpoint, "stored_config", read)
    assert is_finished(tmp_path)
    shutil.rmtree(folder / "8" / "config")
    with pytest.raises(FileNotFoundError, match=r"checkpoints/8/config"):  # which no run does
        is_finished(tmp_path)


def test_resume_on_another_mesh(whole, tmp_path):
    run(tmp_path, 4)
    state = run(tmp_path, 8, strategy="fsdp_tp", devices="cpu:4")
    assert state.params["up"]["kernel"][...].sharding.mesh.size == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.device_get(state), whole[1]
    )


def test_continue_another_run_in_a_new_folder(whole, tmp_path):
    run(tmp_path / "first", 4)
    state = run(tmp_path / "second", 8, resume=str(tmp_path / "first"), weights="gone")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole[1])
    assert losses(tmp_path / "second") == {step: losses(whole[0])[step] for step in range(5, 9)}


def test_what_is_written(whole):
    opened, *lines, closed = metrics.read(whole[0])
    assert [opened["step"], *(line["step"] for line in lines), closed["step"]] == [0, *range(1, 9), 8]
    assert opened["seconds/init"] > 0 == opened["seconds/step"] < closed["seconds/step"]
    assert closed["seconds/checkpoint"] >= lines[-1]["seconds/checkpoint"] > 0 < closed["seconds/compile"]
    assert lines[0]["programs/ready"] > opened["programs/ready"]  # the step
    assert lines[0]["tokens"] == 8 * 3 * 6
    assert [lines[0]["data/records"], lines[2]["data/records"]] == [24, 72]
    assert lines[0]["tokens_a_second"] > 0
    for line in (opened, *lines, closed):
        assert sum(line[name] for name in line if name.startswith("time/")) == pytest.approx(1, abs=1e-3)
    assert lines[-1]["loss"] < lines[0]["loss"]
    with Checkpoints(whole[0] / "checkpoints") as saved:
        assert saved.latest() == 8
    assert stored_config(epath.Path(whole[0] / "checkpoints" / "8")) == {"peak": 1e-2, "steps": 8}


def test_weights_of_another_run(whole, tmp_path):
    class Wider(Small):
        def __init__(self, *, rngs: nnx.Rngs):
            super().__init__(rngs=rngs)
            self.extra = param(nnx.initializers.ones, rngs, (3, 4), (None, None))

    model = Wider(rngs=Rngs(1))
    loaded = load_weights(whole[0], model, fresh="^extra$")
    np.testing.assert_array_equal(loaded.embed[...], whole[1].frozen["embed"][...])
    np.testing.assert_array_equal(loaded.up.kernel[...], whole[1].params["up"]["kernel"][...])
    np.testing.assert_array_equal(loaded.extra[...], jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"extra: saved nothing, wanted \(3, 4\)"):
        load_weights(whole[0], model)

    save_weights(tmp_path, model)
    again = load_weights(tmp_path, Wider(rngs=Rngs(2)))
    jax.tree.map(np.testing.assert_array_equal, again, model)


def test_checkpoint_of_another_shape(whole, tmp_path):
    class Longer(Small):
        def __init__(self, *, rngs: nnx.Rngs):
            super().__init__(rngs=rngs)
            self.embed = param(nnx.initializers.normal(0.5), rngs, (48, 16), ("vocab", "embed"))

    def make():
        return Longer(rngs=Rngs(0))

    resume = str(whole[0])
    with pytest.raises(ValueError, match=r"frozen/embed: saved \(32, 16\), wanted \(48, 16\)\n.*workdir"):
        run(tmp_path, 8, make=make, resume=resume)


def test_places_of_several_processes_are_put_together(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "8" / "data"
    (position,) = folder.glob("process_*")
    position.rename(folder / "process_0-of-2.json")
    (folder / "process_1-of-2.json").write_text('{"next_index": 7}')
    with pytest.raises(ValueError, match=r"stood at different places .*8.* and .*7"):
        run(tmp_path, 9)
    (folder / "process_1-of-2.json").write_text("{")
    with pytest.raises(ValueError, match=r"process_1-of-2.json is damaged .* Copy it again, or delete .*/8 "):
        run(tmp_path, 9)
    (folder / "process_1-of-2.json").write_text('{"next_index": 8}')
    assert run(tmp_path, 9).step == 9
    shutil.rmtree(folder.parent.parent / "9")
    for file in folder.glob("process_*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no place in the data: give .* as config.init.weights"):
        run(tmp_path, 9)


def test_what_an_interrupted_save_left_is_no_checkpoint(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    left = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "8", left)
    with Checkpoints(tmp_path / "checkpoints") as reader:
        assert reader.latest() == 8 and left.exists()  # it may be being written by somebody else
    assert run(tmp_path, 9).step == 9
    assert not left.exists()


def test_nothing_to_resume_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint .*; give the workdir of a run"):
        run(tmp_path / "new", 8, resume=str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"no weights in .*; give the workdir of a run"):
        run(tmp_path / "newer", 8, weights=str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


def test_a_workdir_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot write .*file.* \(.*\): give another with --workdir"):
            run(folder, 8)
    with pytest.raises(ValueError, match="the workdir is empty"):
        run("", 8)


def test_stops_after_steps_that_are_not_finite(tmp_path):
    with pytest.raises(NotFiniteError, match=r"step 4: not finite for 4 steps in a row: .*box/l2"):
        run(tmp_path, 8, data=batches(bad=True), bad_steps=4, save_every=4)  # found before it is saved
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest() is None


def test_data_that_ends_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="data ended before step 3"):
        run(tmp_path, 8, data=batches(records=2), profile_first=2, profile_steps=9)
    assert profiles(tmp_path) == 1  # the one that was planned ends with the run


def test_a_transfer_that_nobody_asked_for_is_an_error(tmp_path):
    def program(state, batch):
        return jax.jit(lambda state, x: (state, x))(state, np.ones(3))

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path, 8, program=program)


def test_a_save_that_fails_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def save(manager, *args, **kwargs):
        manager.failure = OSError("no space is left")

    monkeypatch.setattr(checkpoint._Manager, "save", save)
    with pytest.raises(SaveError, match=r"step 4 could not .*no space is left.* There is no earlier"):
        run(tmp_path, 8)
    assert max(losses(tmp_path)) == 4  # the next step was under way


def test_groups_that_do_not_split_are_named(tmp_path):
    with pytest.raises(ValueError, match="6 groups do not split over 8 batch shards"):
        run(tmp_path, 8, data=batches(groups=6))


@pytest.fixture(scope="module")
def short(whole, tmp_path_factory):
    """Five steps from the weights of another run: its folder, the states after each of them and where they
    lay, when a hook was due, its data."""
    workdir, states, due, data = tmp_path_factory.mktemp("short"), [], [], batches()
    shardings = []

    def keep(state):
        states.append(jax.device_get(state))
        shardings.append(jax.tree.map(lambda leaf: leaf.sharding, state))
        return {}

    def hook(state):
        if not due:
            (workdir / "PROFILE").write_text("1")
        due.append(int(state.step))
        return {"eval/one": 1.0}

    settings = {"weights": str(whole[0]), "wait": True, "log_every": 3, "save_every": 1, "keep": 2}
    run(workdir, 5, data=data, hooks=[(1, keep), (2, hook)], strategy="zero1", **settings)
    return workdir, states, due, data, shardings


def test_hooks_run_when_due_and_at_the_end(short):
    assert short[2] == [2, 4, 5]
    assert [line["step"] for line in metrics.read(short[0]) if "eval/one" in line] == [2, 4, 5]


def test_a_step_leaves_everything_where_it_was(short):
    """Splitting the moments alone, where the compiler would leave the parameters split as well."""
    for state in short[4]:
        assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(state.params))
        moments = [
            sharding for sharding in jax.tree.leaves(state.opt_state) if not sharding.is_fully_replicated
        ]
        assert len(moments) == 2 * 5  # of two kernels, a bias, a scale and the boxes' kernel


def test_a_run_from_weights_takes_nothing_else(whole, short):
    first = short[1][0]  # the first step of the warm-up changes no weight
    assert first.step == 1
    jax.tree.map(np.testing.assert_array_equal, first.params, whole[1].params)
    jax.tree.map(np.testing.assert_array_equal, first.frozen, whole[1].frozen)
    moments, old = (jax.tree.leaves(state.opt_state) for state in (first, whole[1]))
    assert not any(np.array_equal(a, b) for a, b in zip(moments, old, strict=True))
    assert short[3].get_state() == {"next_index": 5}  # the batch it compiled with is not lost


def test_metrics_are_written_when_due_and_at_the_end(short):
    lines = [line for line in metrics.read(short[0]) if "loss" in line]
    assert [(line["step"], line["data/records"]) for line in lines] == [(3, 72), (5, 120)]


def test_the_newest_checkpoints_stay(short):
    assert whole_steps(epath.Path(short[0] / "checkpoints")) == [4, 5]


def profiles(workdir: pathlib.Path) -> int:
    return len(list((workdir / "profile").rglob("*.xplane.pb")))


def test_a_profile_is_recorded_on_request(short):
    assert profiles(short[0]) == 1


def test_sigterm_ends_the_wait_for_another_run(tmp_path, monkeypatch):
    looks = []

    def look(weights):
        looks.append(weights)
        signal.raise_signal(signal.SIGTERM)
        return False

    monkeypatch.setattr(loop, "is_finished", look)
    assert run(tmp_path / "second", 8, weights=str(tmp_path / "first"), wait=True) is None
    assert looks == [str(tmp_path / "first")] and not (tmp_path / "second").exists()


def test_sigterm_saves_and_exits_with_zero(tmp_path):
    program = (
        "import tests.conftest, pathlib, sys; from tests.train.stream import run; "
        "run(pathlib.Path(sys.argv[1]), 100_000, save_every=50_000)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    deadline = time.time() + 90
    while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest() == max(losses(tmp_path))


def test_a_step_that_lost_its_metadata_is_named(tmp_path):
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match=r"state is damaged or incomplete: .* Copy it again"):
        saved_tree(epath.Path(tmp_path / "state"))


def test_arrays_that_were_cut_off_are_named(tmp_path):
    save_weights(tmp_path, make_small(vocab=8192))
    for file in (tmp_path / "0" / "state").glob("*/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    wanted = (
        r"0/state is damaged or incomplete: its array params/[a-z/]+ cannot be read \(.*\)\. Copy it again, "
    )
    wanted += r"or delete .*/0 and make it anew: there is no earlier step"
    with pytest.raises(ValueError, match=wanted) as found:
        load_weights(tmp_path, make_small(vocab=8192))
    assert "\n" not in str(found.value) and found.value.__cause__
    with pytest.raises(ValueError, match=wanted):
        source = Source.open(tmp_path)
        [source.read(leaf) for leaf in source.place]


def test_a_config_that_was_cut_off_is_named(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoints" / "8" / "config", tmp_path / "8" / "config")
    (tmp_path / "7").mkdir()
    (tmp_path / "8" / "config" / "metadata").write_text("{")
    with pytest.raises(ValueError, match=r"8/config is damaged .* or delete .*/8 so that step 7 is taken"):
        stored_config(epath.Path(tmp_path / "8"))
