# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: train state + data iterator + config, written in the background, restored onto any mesh.

A folder holds one numbered folder a step, each with the items `state` (Orbax), `data` (the position of the
Grain iterator, one file a process) and `config` (JSON). A step's folder gets its name only when it is
complete, and an older one goes only then: whatever ends a run, the newest numbered folder is whole.
"""

import contextlib
import functools
import gc
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import grain.checkpoint
import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.typing import DTypeLike

from vllm2_jax.sharding.partition import is_variable, path_name
from vllm2_jax.train.paths import PathLike, in_bucket, place
from vllm2_jax.train.state import TrainState

Model = TypeVar("Model", bound=nnx.Module)

_POLL = 0.02  # seconds between two looks at a save in progress
# How TensorStore's errors begin that say nothing about the files.
_PASSING = (
    *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"),
    *("UNAUTHENTICATED", "UNAVAILABLE"),
)


class SaveError(RuntimeError):
    """A checkpoint could not be written."""


class _Manager(ocp.CheckpointManager):
    """Keeps the error of a save in the background. Orbax 0.12.8 raises it only after all processes have met
    at a barrier, to which the others do not come: they wait for this one's part."""

    failure: Exception | None = None

    def _wait_for_checkpointers(self):
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise


class Checkpoints:
    """The checkpoints of one run folder. A context: leaving it finishes what is being written."""

    def __init__(self, directory: PathLike, *, keep: int | None = None, write: bool = False):
        """The last `keep` steps stay (None: all). `write` is for the run that writes here, not for those
        that only read: it makes the folder and removes what interrupted saves have left, which may fill the
        disk."""
        self.directory = place(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=write, cleanup_tmp_directories=write, enable_async_checkpointing=True
        )
        self._manager = _Manager(self.directory, options=options)
        self._saving: int | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None or jax.process_count() == 1:
            self.close()
        # Else other processes may be gone, and Orbax would wait for them.

    def close(self) -> None:
        """Waits for the save in progress.

        Raises:
          SaveError: it has failed.
        """
        self.wait()
        self._guard(self._manager.close)

    def check(self) -> None:
        """Raises SaveError if a save in the background has failed; waits for nothing."""
        self._guard(self._raise_failure)
        self._guard(self._manager.check_for_errors)

    def _raise_failure(self) -> None:
        if self._manager.failure is not None:
            raise self._manager.failure

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            whole = whole_steps(self.directory)
            disk = self.directory.exists() and not in_bucket(self.directory)
            free = f"; {shutil.disk_usage(self.directory).free / 2**20:,.0f} MiB are free" if disk else ""
            raise SaveError(
                f"the checkpoint of step {self._saving} could not be written to {self.directory} (process "
                f"{jax.process_index()}{free}): {_short(error)}. "
                + (f"Whole are those of the steps {whole}" if whole else "There is no earlier one")
                + ": make room or repair the disk, lower config.keep, then start the same command again, "
                + ("which goes on from the last of them" if whole else "which begins anew")
            ) from error

    def wait(self) -> None:
        """Waits for the save in progress, as `close` does; more can follow."""
        # Orbax waits for the other processes first, and says later that this one has failed.
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(_POLL)
        self._guard(self._manager.wait_until_finished)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: Any, config: dict[str, Any]) -> None:
        """Saves in the background. A step that is there already is left alone.

        Args:
          step: updates done.
          state: may be donated to the next step as soon as this returns.
          data: the Grain iterator, standing behind the batch of the last step.
          config: of the run, JSON-like.

        Raises:
          SaveError: this save could not be begun, or the one before it has failed.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain.checkpoint.CheckpointSave(data),
            config=ocp.args.JsonSave(config),
        )
        self.wait()
        self._saving = step
        self._guard(functools.partial(self._manager.save, step, args=items, force=True))

    def restore(self, abstract: TrainState, data: Any, step: int | None = None) -> TrainState:
        """Restores a step (default: the newest) onto the shardings of `abstract`; sets `data` to its
        position.

        Raises:
          FileNotFoundError: the folder has no complete checkpoint.
          ValueError: the checkpoint is of another model or optimizer (lists every leaf that differs), of
            other data, or damaged.
        """
        step = self._step(step)
        advice = "take another workdir, or give it as config.init.weights to start from its parameters alone"
        check_shapes(self._saved(step), _flat(abstract), f"{self.directory}/{step}", advice)
        data.set_state(self._position(step))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        with readable(self.directory / str(step) / "state"):
            return self._manager.restore(step, args=args)["state"]

    def _step(self, step: int | None) -> int:
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no complete checkpoint{'' if step is None else f' {step}'} in {self.directory}, "
                f"which has the steps {list(self._manager.all_steps()) or 'none'}; "
                "give the workdir of a run, the folder with `checkpoints` in it"
            )
        return step

    def _position(self, step: int) -> Any:
        """The places in the data of all processes that wrote a step, put together: any number can go on."""
        folder = self.directory / str(step) / "data"
        files = sorted(folder.glob("process_*-of-*.json"))
        if not files:
            raise ValueError(
                f"{folder} holds no place in the data: give {self.directory.parent} as config.init.weights "
                "to start a new run"
            )
        places = []
        for file in files:
            try:
                places.append(json.loads(file.read_text()))
            except ValueError as error:
                raise ValueError(f"{file} is damaged ({error}). {_remedy(folder)}") from error
        return functools.reduce(functools.partial(_join, where=str(folder)), places)

    def _saved(self, step: int) -> dict[str, Any]:
        return _flat(saved_tree(self.directory / str(step) / "state"))


def saved_tree(folder: epath.Path) -> Any:
    """Shapes and dtypes of what a `state` folder holds, as nested dicts of Orbax metadata.

    Raises:
      ValueError: there are none.
    """
    with ocp.StandardCheckpointer() as reader:
        found = reader.metadata(folder).item_metadata
    if found is None:
        raise ValueError(
            f"{folder} is damaged or incomplete: it does not say which arrays it holds. {_remedy(folder)}"
        )
    return found.tree


@contextlib.contextmanager
def readable(folder: epath.Path) -> Iterator[None]:
    """Of files that are missing or truncated Orbax and TensorStore print a page; here it is one sentence.

    Raises:
      ValueError: names the `state` folder and, as far as it is known, the array.
    """
    try:
        yield
    except Exception as error:  # Orbax raises a bare `Exception`
        cause = _innermost(error)
        if not isinstance(cause, ValueError | FileNotFoundError) or str(cause).startswith(_PASSING):
            raise
        found = re.search(r'Error (?:reading|opening) "([^"/]+?)(?:\.value)?/', str(cause))
        array = f"its array {found[1].replace('.', '/')}" if found else "one of its arrays"
        raise ValueError(
            f"{folder} is damaged or incomplete: {array} cannot be read ({_short(error)}). {_remedy(folder)}"
        ) from error


def _remedy(item: epath.Path) -> str:
    """What to do about a damaged item of a step."""
    step = item.parent
    if not item.exists():
        return "It is gone: a run that still trains keeps only its newest steps; start the command again"
    earlier = [number for number in steps_in(step.parent) if step.name.isdigit() and number < int(step.name)]
    return f"Copy it again, or delete {step} " + (
        f"so that step {earlier[-1]} is taken" if earlier else "and make it anew: there is no earlier step"
    )


def check_shapes(saved: dict[str, Any], wanted: dict[str, Any], where: str, advice: str) -> None:
    """Raises ValueError that lists every path that only one side has, or that differs in shape.

    Args:
      saved, wanted: leaf by path.
      where: the checkpoint.
      advice: what to do besides taking the config of the checkpoint.
    """
    lines = [
        f"  {path}: saved {_shape(saved.get(path))}, wanted {_shape(wanted.get(path))}"
        for path in sorted(saved.keys() | wanted.keys())
        if _shape(saved.get(path)) != _shape(wanted.get(path))
    ]
    if lines:
        raise ValueError(
            f"the checkpoint {where} does not fit this run in {len(lines)} leaves:\n"
            + "\n".join(lines)
            + "\n"
            f"Use the config it was written with (the item `config` in its folder), or {advice}."
        )


def save_weights(directory: PathLike, model: nnx.Module) -> None:
    """Writes parameters alone, in a layout that `load_weights` reads: what conversion produces."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(place(directory) / "0" / "state", {"params": nnx.state(model)}, force=True)


OF_MODEL: Any = object()  # see `load_weights`
GROUP = 2**29  # elements that are read at once: a host holds them twice for a moment


def load_weights(
    directory: PathLike, model: Model, fresh: str = "", *, dtype: DTypeLike | None = OF_MODEL
) -> Model:
    """Replaces the parameters of a sharded model by those of another run or of a conversion.

    Args:
      directory: the workdir of a run (its newest step is taken) or a folder written by `save_weights`.
      model: has the shapes and shardings to load into, and may be abstract; what was trained and what frozen
        there does not matter. Parts of the folder that it lacks are not read.
      fresh: regex; parameters whose path it finds stay as they are, or abstract, if it lacks them.
      dtype: of what is loaded: None keeps what is stored, the default takes that of `model`.

    Raises:
      FileNotFoundError: no checkpoint in the folder.
      ValueError: lists parameters that are missing, not `fresh`, or of another shape; or damaged files.
    """
    folder = state_folder(directory)
    tree = saved_tree(folder)
    found = {part: _flat(tree[part]) for part in ("params", "frozen") if tree.get(part)}
    home = {path: part for part, leaves in found.items() for path in leaves}
    wanted = _flat(model)
    take = {
        path: leaf for path, leaf in wanted.items() if path in home or not (fresh and re.search(fresh, path))
    }
    saved = {path: found[part][path] for path, part in home.items() if path in take}
    advice = "to train, name what shall begin random with config.init.fresh=REGEX"
    check_shapes(saved, take, str(folder), advice)
    values: dict[str, Any] = {}
    with ocp.PyTreeCheckpointer() as reader:
        for group in _groups(take):
            target: dict[str, Any] = {}
            for path in group:
                node = target.setdefault(home[path], {})
                for name in path.split("/"):
                    node = node.setdefault(name, {})
                leaf = take[path]
                kind = leaf.dtype if dtype is OF_MODEL else dtype or found[home[path]][path].dtype
                node["value"] = jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)
            args = ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            )
            with readable(folder):
                loaded = reader.restore(folder, args=args)
            values |= {path: leaf for part in loaded.values() for path, leaf in _flat(part).items()}
            gc.collect()  # what Orbax has read lies in cycles, which would hold it twice

    def one(path, leaf):
        name = path_name(path)
        return leaf.replace(values[name]) if name in values else leaf

    return jax.tree_util.tree_map_with_path(one, model, is_leaf=is_variable)


def _groups(leaves: Mapping[str, Any]) -> list[list[str]]:
    """Paths of the leaves that are read at once: the largest first, as long as memory holds little else."""
    groups: list[list[str]] = []
    room = 0
    for path in sorted(leaves, key=lambda path: (-leaves[path].size, path)):
        if not groups or leaves[path].size > room:
            groups.append([])
            room = GROUP
        groups[-1].append(path)
        room -= leaves[path].size
    return groups


def state_folder(directory: PathLike) -> epath.Path:
    """The newest `state` of a run's workdir or of a folder of weights.

    Raises:
      FileNotFoundError: there is none.
    """
    root = place(directory)
    if (root / "checkpoints").is_dir():
        root = root / "checkpoints"
    # Those that were copied into a bucket, or converted, are not marked as complete there.
    steps = whole_steps(root) or steps_in(root)
    steps = [step for step in steps if (root / str(step) / "state").is_dir()]
    if not steps:
        unsaved = "; the run has saved no step yet" if root.name == "checkpoints" else ""
        released = f", or convert it with `python -m launch.convert --from {root} --to FOLDER`"
        raise FileNotFoundError(
            f"no weights in {root}: it has no numbered folder with an item `state`{unsaved}; give the "
            "workdir of a run or a folder of converted weights"
            f"{released if (root / 'config.json').exists() else ''}"
        )
    return root / str(steps[-1]) / "state"


def steps_in(folder: epath.Path) -> list[int]:
    """Names of the numbered folders in a folder, in order; none if it is not there."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def whole_steps(folder: epath.Path) -> list[int]:
    """Steps that a run has saved, in order. In a bucket one has its name before it is complete."""
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def stored_config(step: epath.Path) -> dict[str, Any]:
    """The config in the numbered folder of a step; unlike `Checkpoints`, asks no other process to look too.

    Raises:
      FileNotFoundError: it has none.
      ValueError: it is damaged.
    """
    try:
        return ocp.JsonCheckpointHandler().restore(step / "config")
    except ValueError as error:
        raise ValueError(f"{step / 'config'} is damaged ({error}). {_remedy(step / 'config')}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{step / 'config'} is missing, so it is not known which model this is: give the workdir of a "
            "run, or a folder that launch.convert wrote"
        ) from error


def is_finished(directory: PathLike) -> bool:
    """Whether a run has saved its last step; of a conversion, whether it is there. One process may ask."""
    root = place(directory)
    folder = root / "checkpoints"
    if not folder.is_dir():
        return bool(steps_in(root))
    while steps := whole_steps(folder):
        try:
            return steps[-1] >= stored_config(folder / str(steps[-1]))["steps"]
        except FileNotFoundError:
            # A run that keeps one step deletes it when the next one is whole, maybe just now.
            if whole_steps(folder)[-1:] == steps[-1:]:
                raise
    return False


def _flat(tree: Any) -> dict[str, Any]:
    """Leaf by path; Orbax writes a Variable as a dict with the one key `value`, which is left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path).removesuffix("/value"): leaf for path, leaf in leaves}


def _join(one: Any, other: Any, *, where: str) -> Any:
    """Dicts with the keys of both; what both have has to be the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: _join(one[key], other[key], where=where) for key in one.keys() & other.keys()}
        return one | other | both
    if one != other:
        raise ValueError(
            f"the processes that wrote {where} stood at different places in the data ({one} and {other}): "
            "the iterator has to have a place that is the same on all of them, as that of data_pipelines has"
        )
    return one


def _short(error: BaseException) -> str:
    """The innermost cause in one line: what the system said, without the layers that passed it on."""
    error = _innermost(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _innermost(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _shape(leaf: Any) -> str:
    return "nothing" if leaf is None else str(tuple(leaf.shape))
