# SPDX-License-Identifier: Apache-2.0
"""The training loop, to be read from top to bottom.

What it promises: a run that is killed and started again goes on with the same batches, the same random
numbers and the same weights, on the same or another mesh or number of processes; the devices never wait for
the host to read a metric; a run that has gone wrong stops and says at which step.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.train import profile
from vllm2_jax.train.checkpoint import Checkpoints, is_finished, load_weights, whole_steps
from vllm2_jax.train.goodput import Clock
from vllm2_jax.train.metrics import Writer
from vllm2_jax.train.monitor import Monitor
from vllm2_jax.train.paths import make_folder, place
from vllm2_jax.train.state import Plan, TrainState, create
from vllm2_jax.train.stop import stop_requests

# Every how many steps, and what to run: (state) -> values to write.
Hook = tuple[int, Callable[[TrainState], Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The settings of a run that are neither model, data nor optimizer.

    Attributes:
      workdir: folder of the run, may be in a bucket (gs://...); a run found there is continued. Holds
        `checkpoints/`, `metrics.jsonl` and `profile/`.
      steps: updates of the whole run.
      log_every, save_every: steps between written metrics and between checkpoints.
      keep: checkpoints that stay; older ones are deleted.
      resume: workdir of another run to continue in this one: state and position in the data.
      weights, fresh: where parameters come from, and the regex of those it may lack (`load_weights`).
      wait: begin by compiling, then wait until `weights` are finished: the run there may still go on.
      bad_steps: steps in a row that may be skipped because they are not finite before the run stops.
      profile_first, profile_steps: window that the profiler records; 0 steps: none. A file PROFILE in the
        workdir asks for another one (`profile.TraceWindow`).
    """

    workdir: str
    steps: int
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    resume: str = ""
    weights: str = ""
    fresh: str = ""
    wait: bool = False
    bad_steps: int = 3
    profile_first: int = 10
    profile_steps: int = 0

    def __post_init__(self):
        if not self.workdir:
            raise ValueError("the workdir is empty; give the folder of the run as --workdir=FOLDER")
        for name in ("steps", "log_every", "save_every", "keep", "bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}; it has to be at least 1")


def start(config: LoopConfig, plan: Plan, checkpoints: Checkpoints, data: Any) -> TrainState:
    """The state a run starts from; `data` is set to the position that belongs to it."""
    # (1) This run was here before: go on. A job that a scheduler starts again needs no other command.
    if checkpoints.latest() is not None:
        logging.info("resuming %s at step %d", checkpoints.directory, checkpoints.latest())
        return checkpoints.restore(plan.abstract, data)
    # (2) Another run is to be continued here, with its optimizer, its step and its place in the data.
    if config.resume:
        logging.info("continuing the run %s", config.resume)
        with Checkpoints(place(config.resume) / "checkpoints") as other:
            return other.restore(plan.abstract, data)
    # (3) A new run that starts from weights: converted ones, or those of an earlier stage.
    if config.weights:
        logging.info("starting from the weights %s", config.weights)
        return create(plan, lambda model: load_weights(config.weights, model, config.fresh))
    # (4) From scratch.
    logging.info("starting from random weights")
    return create(plan)


def train(
    config: LoopConfig,
    plan: Plan,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    data: Any,
    mesh: Mesh,
    strategy: Strategy,
    *,
    run_config: Mapping[str, Any],
    program: Callable[[TrainState, Any], tuple[TrainState, Any]] | None = None,
    hooks: Sequence[Hook] = (),
    clock: Clock | None = None,
) -> TrainState | None:
    """Trains until `config.steps`, or until it is asked to stop.

    Args:
      config: of the loop.
      plan: of the state.
      train_step: from `step.make_train_step`; compiled here, if `program` is None.
      data: Grain iterator of `{"batch": host batch, "counters": {name: int}}`. The states of all processes,
        put together, are a place that any number of processes can go on from.
      mesh, strategy: where things go.
      run_config: JSON-like, stored with every checkpoint.
      program: the same step, compiled before.
      hooks: evaluations, run after every so many steps and at the end.
      clock: counts since the process began; by default since now.

    Returns:
      The last state. A SIGTERM makes it return early, with a checkpoint written; while it waits, with None.

    Raises:
      NotFiniteError: names the step, see `monitor`.
      ValueError: `config.wait` without `config.weights`; or see `start`.
      RuntimeError: the data ended before the last step; names the step.
      SaveError: a checkpoint could not be written; those before it are whole.
    """
    if config.wait and not config.weights:
        raise ValueError("there is nothing to wait for: set config.init.weights=FOLDER, or leave --wait out")
    clock = clock or Clock()
    programs = profile.programs()
    workdir = place(config.workdir)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(axis_rules(strategy.activation_rules))
        step = program or jax.jit(train_step, donate_argnums=0, out_shardings=(plan.shardings, None))

        # ---------------------------------------------------------------- the stage before may still train
        if config.wait:
            if program is None:
                with clock.on("compile"):
                    step = _compile(step, plan, data, mesh, strategy)

        stop_requested = stack.enter_context(stop_requests())
        if config.wait and not whole_steps(workdir / "checkpoints"):
            if not _await(config.weights, stop_requested):
                logging.info("asked to stop before the first step: there is nothing to save")
                return None

        make_folder(workdir, "--workdir")
        writer = stack.enter_context(contextlib.closing(Writer(workdir, enabled=main)))
        trace = profile.TraceWindow(workdir, config.profile_first, config.profile_steps)
        stack.callback(trace.close)

        # ---------------------------------------------------------------- start or resume
        with clock.on("init"):
            checkpoints = stack.enter_context(
                Checkpoints(workdir / "checkpoints", keep=config.keep, write=True)
            )
            state = start(config, plan, checkpoints, data)
        for fallback in plan.fallbacks:
            logging.warning("not split, because it does not divide: %s", fallback)
        first = int(state.step) + 1
        bar = tqdm(total=config.steps, initial=first - 1, unit="step", disable=None if main else True)
        stack.callback(bar.close)
        monitor = Monitor(
            writer, clock, bar, every=config.log_every, last=config.steps, bad_steps=config.bad_steps
        )

        number = first - 1
        writer.write(number, clock.values() | programs.values())
        for number in range(first, config.steps + 1):
            # ------------------------------------------------------------ data
            trace.before(number)
            with clock.on("data", hidden=monitor.running):
                element = _next(data, number)
                batch = global_batch(mesh, strategy.rules, element["batch"])

            # ------------------------------------------------------------ step
            # A transfer that nobody asked for would stall every step; here it raises.
            with clock.on("compile" if number == first else "step"), jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            # One step in flight: while this one runs, the metrics of the one before are read.
            with clock.on("step"):
                monitor.follow(number, metrics, element["counters"])
            if number == first:
                logging.info("step %d is under way; %s", number, programs.describe())
            if number % config.log_every == 0:
                trace.look(number)

            # ------------------------------------------------------------ evaluate
            for every, hook in hooks:
                if number % every == 0 or number == config.steps:
                    with clock.on("evaluation"):
                        writer.write(number, hook(state))

            # ------------------------------------------------------------ save, stop
            checkpoints.check()
            stop = stop_requested()
            if stop or number == config.steps or number % config.save_every == 0:
                monitor.settle()  # raises before anything is saved of a run that has gone wrong
                with clock.on("checkpoint"):
                    checkpoints.save(number, state, data, dict(run_config))
            if stop:
                logging.info("asked to stop: step %d is saved", number)
                break
        with clock.on("checkpoint"):
            checkpoints.wait()
        writer.write(number, clock.values() | programs.values())
    return state


def _compile(step: Any, plan: Plan, data: Any, mesh: Mesh, strategy: Strategy) -> Any:
    """The step as a program, before there is a state; `data` stays where it is."""
    position = data.get_state()
    batch = global_batch(mesh, strategy.rules, _next(data, 1)["batch"])
    data.set_state(position)
    return step.lower(plan.abstract, batch).compile()


def _await(weights: str, stop_requested: Callable[[], bool]) -> bool:
    """Waits until `weights` are finished, or until it is asked to stop; returns whether they are."""
    looks = itertools.count()
    while True:
        # One process looks for all: of two, the second might see a step that was not there for the first.
        found = np.int32(jax.process_index() == 0 and is_finished(weights))
        if multihost_utils.broadcast_one_to_all(found):
            return True
        if stop_requested():
            return False
        if next(looks) % 60 == 0:
            logging.info("the step is compiled; waiting for the last step of the run %s", weights)
        time.sleep(1)


def _next(data: Any, number: int) -> Any:
    try:
        return next(data)
    except StopIteration:
        raise RuntimeError(
            f"the data ended before step {number}; repeat the datasets or lower config.steps"
        ) from None
