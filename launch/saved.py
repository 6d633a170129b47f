# SPDX-License-Identifier: Apache-2.0
"""A run's newest checkpoint, or a folder of converted weights, opened to be asked.

Nothing is drawn at random and nothing is loaded that is not wanted: memory holds the parameters in the
precision that they are stored in, or that is asked for, and no others.
"""

from collections.abc import Collection

import jax
import ml_collections
from jax.typing import DTypeLike

from configs.groups import GROUPS
from launch.build import Run, build_run, rebuild
from vllm2_jax.decoders import DECODERS
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.train.checkpoint import load_weights, state_folder, stored_config
from vllm2_jax.train.paths import PathLike


def saved_config(workdir: PathLike) -> ml_collections.ConfigDict:
    """The config in the newest checkpoint of a run, or beside converted weights.

    Raises:
      FileNotFoundError: no checkpoint.
    """
    return ml_collections.ConfigDict(stored_config(state_folder(workdir).parent))


def config_to_ask(
    workdir: PathLike, strategy: str, decoders: Collection[str] | None = None
) -> ml_collections.ConfigDict:
    """The config in the newest checkpoint of a run, changed to ask its model on the devices at hand.

    Args:
      workdir: of a run, or converted weights.
      strategy: how the model is laid over the devices.
      decoders: those that the model shall have if it was saved with them; None takes all.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a decoder that no model has.
    """
    config = saved_config(workdir)
    if unknown := sorted(set(decoders or ()) - set(DECODERS)):
        raise ValueError(f"no decoder {', '.join(unknown)}; there are {', '.join(DECODERS)}")
    config.sharding.strategy, config.sharding.mesh, config.sharding.devices = strategy, "", ""
    config.data.groups = jax.device_count()  # of training; here it only has to fit the mesh
    with config.unlocked(), config.ignore_type():
        if decoders is not None:
            found = config.model.decoders.to_dict()
            config.model.decoders = {name: sizes for name, sizes in found.items() if name in decoders}
        config.optimizer.groups = GROUPS["all_links"]  # those of the run may speak of decoders left out
    return config


def saved_run(workdir: PathLike, strategy: str, decoders: Collection[str] | None = None) -> Run:
    """The run of `config_to_ask`; nothing is loaded yet."""
    return build_run(config_to_ask(workdir, strategy, decoders))


def saved_model(workdir: PathLike, run: Run, dtype: DTypeLike | None = None) -> VisionLLMv2:
    """The model of a run with its newest weights, each array read by the devices that keep it.

    Args:
      workdir: as in `saved_run`.
      run: what `saved_run` returned; decides which parts are read.
      dtype: of all parameters; None keeps what is stored.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: lists parameters that are missing or of another shape.
    """
    return load_weights(workdir, rebuild(run, run.plan.abstract), dtype=dtype)
