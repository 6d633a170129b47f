# SPDX-License-Identifier: Apache-2.0
"""Trains a model, or goes on with a run that was interrupted: the same command, also on another mesh.

    python -m launch.train --config configs/stage1_tune_7b.py --workdir runs/tune --config.optimizer.peak=1e-5

On a pod, run it on every host with --multihost. It exits with 0 when all steps are done, with --stopped_code
(also 0) when it was asked to stop (SIGTERM) and has saved; with 2 when config or data are at fault; with 3
when the loss is not finite; with 4 when the machine is: no data arrives, or no checkpoint can be written. All
processes end with the same code, and say which of them had the error.
"""

import dataclasses
import functools
import json
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from launch import executables, exits, tpu_flags
from launch.build import Config, build_run, data_iterator, describe, loop_config, rebuild
from launch.heldout import hooks
from launch.logs import hush_orbax
from vllm2_jax.train import fate, goodput, metrics
from vllm2_jax.train.goodput import Clock
from vllm2_jax.train.loop import train

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file with get_config(), such as configs/base.py:tiny; any key can be set as --config.key=value.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, may be gs://...: checkpoints and metrics.jsonl.", required=True
)
_WAIT = flags.DEFINE_bool(
    "wait",
    False,
    "Compile, then wait until the run in config.init.weights has saved its last step: for a stage that is "
    "started while the one before it still trains.",
)
_EXECUTABLE = flags.DEFINE_string(
    "executable",
    "",
    "Start the step of this file, written by launch.compile --save for the same config and slice, instead of "
    "compiling it; may be gs://... Open only files you trust: loading one runs what it says.",
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One process a host: find the others (TPU pods, Slurm).")
_STOPPED_CODE = flags.DEFINE_integer(
    "stopped_code", 0, "Exit code of a run that was asked to stop, for a scheduler that is to start it again."
)


def main(argv: list[str]) -> None:
    """Reads the flags and trains."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    tpu_flags.set_flags()
    clock = Clock()
    if _MULTIHOST.value:
        with clock.on("init"):
            jax.distributed.initialize()
    hush_orbax()
    config = _CONFIG.value
    try:
        with fate.shared(exits.exit_code):
            finished = _train(config, clock)
    except Exception as error:
        code = exits.exit_code(error)
        if code in (1, 2):
            # What lies below an error of ours is in its text.
            chain = "".join(traceback.format_exception(error, chain=code == 1))
            logging.error("the run has failed\n%s", chain)
        print(f"launch.train: {error}", file=sys.stderr)
        fate.leave(code)
    if not finished:
        sys.exit(_STOPPED_CODE.value)


def _train(config: Config, clock: Clock) -> bool:
    """Trains; returns whether all steps are done."""
    with clock.on("init"):
        if config.model.llm.vocab and not config.data.tokenizer:
            raise ValueError(
                f"the model has its own vocabulary ({config.model.llm.vocab} rows): give the folder of its "
                "tokenizer as --config.data.tokenizer=FOLDER"
            )
        run = build_run(config)
        logging.info("%s", describe(run))
        data = data_iterator(config, run)
        evaluations = hooks(config, run, functools.partial(rebuild, run))
        program = None
        if file := _EXECUTABLE.value:
            devices = list(run.mesh.devices.flat)
            program = executables.load(file, devices, name="train", config=config)
            executables.check_can_run(devices)
    state = train(
        dataclasses.replace(loop_config(config, _WORKDIR.value), wait=_WAIT.value),
        run.plan,
        run.train_step,
        data,
        run.mesh,
        run.strategy,
        run_config=json.loads(config.to_json_best_effort()),
        program=program,
        hooks=evaluations,
        clock=clock,
    )
    if state is not None and jax.process_index() == 0:
        print(goodput.describe(goodput.whole_run(metrics.read(_WORKDIR.value))))
    return state is not None and int(state.step) >= config.steps


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    exits.run(main)
