# SPDX-License-Identifier: Apache-2.0
"""Runs the frozen encoders of a decoder that paints over a dataset, once, so that training need not.

    python -m launch.encode --config configs/stage3_paint_7b.py --config.data.root=DATA \\
        --config.init.weights=WEIGHTS --task t2i --dataset journeydb --to DATA/journeydb/encoded --multihost

Latent moments of the pictures and states of the captions are written as `data_pipelines/encoded.py` says.
With --multihost, started on every host of a pod, each host writes the part of its number, so `--to` has to be
a folder that all share; machines that know nothing of each other are given --part and --parts. Then train
with `encoded` among the options of the dataset and the printed capacities in its task. Records that cannot be
read are named and left out.
"""

import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx
from jaxtyping import Array
from ml_collections import config_flags

from data_pipelines.collate import DECODER_COLLATE, TaskShape
from data_pipelines.encoded import part_folder, part_range
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.mixture import open_source, task_shapes
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import exits
from launch.build import Config, collate_spec, fill_root, model_config
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.decoders.diffusion.config import PainterConfig
from vllm2_jax.decoders.diffusion.targets import to_pixels
from vllm2_jax.decoders.diffusion.text import CLIPText
from vllm2_jax.decoders.diffusion.vae import VAE
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.train.checkpoint import load_weights


class Encoders(nnx.Module):
    """The frozen parts of a decoder that read pictures and captions."""

    def __init__(self, config: PainterConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.vae = VAE(config.vae, dtype=dtype, rngs=rngs)
        self.text = CLIPText(config.text, dtype=dtype, rngs=rngs)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What is to be stored of a batch of targets, in half precision."""
        found = {"moments": self.vae.encode(to_pixels(arrays["image"]))}
        if "input" in arrays:
            found["input_moments"] = self.vae.encode(to_pixels(arrays["input"]))
        found["caption_states"] = self.text(arrays["caption"])
        return {name: x.astype(jnp.float16) for name, x in found.items()}


class Frozen(nnx.Module):
    """The encoders at the place that they have in a model, where its weights are looked for."""

    def __init__(self, decoder: str, config: PainterConfig, *, rngs: nnx.Rngs):
        self.decoders = nnx.Dict({decoder: Encoders(config, rngs=rngs)})


def load_encoders(decoder: str, config: PainterConfig, weights: str, mesh: jax.sharding.Mesh) -> Encoders:
    """The encoders of a decoder, whole on every device; nothing else of the model is read.

    Raises:
      FileNotFoundError: no weights in the folder.
      ValueError: weights of another shape.
    """
    whole = jax.NamedSharding(mesh, jax.P())
    abstract = jax.eval_shape(lambda: Frozen(decoder, config, rngs=Rngs(0)))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), abstract)
    return load_weights(weights, placed).decoders[decoder]


def encode(
    source: Sequence[Example],
    numbers: Sequence[int],
    encoders: Encoders,
    shape: TaskShape,
    rows: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Batches of records: their numbers, and what the encoders make of them.

    Args:
      source: the dataset.
      numbers: which of its records.
      encoders: whole on all devices of the mesh.
      shape: of the dataset's task, with capacities for pictures and captions.
      rows: how many at once; a multiple of the devices.
      mesh: has the one axis "data".

    Yields:
      Records that cannot be read are logged and left out.
    """
    assert shape.decoder is not None
    split = jax.NamedSharding(mesh, jax.P("data"))
    run = jax.jit(lambda encoders, arrays: encoders(arrays), out_shardings=split)
    collate = DECODER_COLLATE[shape.decoder]
    blank, _ = collate(None, shape)
    for start in range(0, len(numbers), rows):
        kept, made = [], []
        for number in numbers[start : start + rows]:
            try:
                made.append(collate(source[number].targets[shape.decoder], shape)[0])
                kept.append(number)
            except DataError as error:
                logging.warning("record %d is left out: %s", number, error)
        filled = [*made, *[blank] * (rows - len(made))]
        arrays = {name: np.stack([row[name] for row in filled]) for name in blank}
        found = jax.device_get(run(encoders, jax.device_put(arrays, split)))
        yield kept, {name: x[: len(kept)] for name, x in found.items()}


def write_part(
    folder: pathlib.Path, numbers: Sequence[int], batches: Iterator[tuple[list[int], dict[str, np.ndarray]]]
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Writes one part; it gets its name when it is complete.

    Args:
      folder: of the part.
      numbers: the records of the part.
      batches: of `encode`.

    Returns:
      How many records were encoded, and the shape of each array of a record.
    """
    half = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    valid, files = np.zeros(len(numbers), bool), {}
    for kept, arrays in batches:
        for name, x in arrays.items():
            if name not in files:
                size = (len(numbers), *x.shape[1:])
                files[name] = np.lib.format.open_memmap(half / f"{name}.npy", "w+", x.dtype, size)
            files[name][[number - numbers[0] for number in kept]] = x
        valid[[number - numbers[0] for number in kept]] = True
    for file in files.values():
        file.flush()
    np.save(half / "valid.npy", valid)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    return int(valid.sum()), {name: file.shape[1:] for name, file in files.items()}


def encode_dataset(config: Config, task: str, dataset: str, to: str, part: int, parts: int, rows: int) -> str:
    """Writes one part of one dataset of the mixture; returns what to say.

    Raises:
      ValueError: no such task, dataset or part, a task whose decoder does not paint, or no weights given.
      DataError: a dataset that cannot be opened.
      FileNotFoundError: no weights in the folder.
    """
    mixture = fill_root(config.data.mixture.to_dict(), config.data.root)
    if task not in mixture or dataset not in mixture[task]["datasets"]:
        known = [f"{name}/{key}" for name, entry in mixture.items() for key in entry["datasets"]]
        raise ValueError(f"the mixture has no {task}/{dataset}; there are {', '.join(known)}")
    shape = task_shapes(mixture)[task]
    decoder = shape.decoder
    if decoder is None or decoder not in PAINTERS:
        raise ValueError(f"the decoder {decoder!r} of task {task!r} does not paint")
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts} does not exist")
    if not config.init.weights:
        raise ValueError("give the weights of the encoders as --config.init.weights=FOLDER")
    model = model_config(config, load_tokenizer(config.data.tokenizer or TINY_TOKENIZER))
    options = {key: x for key, x in mixture[task]["datasets"][dataset].items() if key != "encoded"}
    source = open_source(dataset, options, spec=collate_spec(config, model), seed=config.seed)
    sizes = {key: x for key, x in shape.capacities.items() if key not in ("moments", "caption_states")}
    shape = TaskShape(1, decoder, shape.tiles, links=shape.links, capacities=sizes)
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)
    encoders = load_encoders(decoder, model.decoders[decoder], config.init.weights, mesh)
    numbers = part_range(len(source), part, parts)
    rows = -(-rows // mesh.size) * mesh.size
    batches = encode(source, numbers, encoders, shape, rows, mesh)
    count, shapes = write_part(part_folder(to, part, parts), numbers, batches)
    room = {name: size for name, size in shapes.items() if name != "input_moments"}
    return (
        f"{count} of {len(numbers)} records written to {part_folder(to, part, parts)}; train with "
        f"encoded={to!r} in the options of the dataset and {room} in the capacities of the task"
    )


def main(argv: list[str]) -> None:
    """Reads the flags and encodes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    given = flags.FLAGS
    part, parts = given.part, given.parts
    if given.multihost:
        jax.distributed.initialize()
        part, parts = jax.process_index(), jax.process_count()
    try:
        print(encode_dataset(given.config, given.task, given.dataset, given.to, part, parts, given.rows))
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.encode: {error}", file=sys.stderr)
        sys.exit(2)


def define_flags() -> None:
    """Not when imported: other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "The config that will train.")
    flags.DEFINE_string("task", None, "Of the mixture.", required=True)
    flags.DEFINE_string("dataset", None, "Of the task.", required=True)
    flags.DEFINE_string("to", None, "Folder to write.", required=True)
    flags.DEFINE_integer("part", 0, "Which part of the records.")
    flags.DEFINE_integer("parts", 1, "How many parts there are.")
    flags.DEFINE_bool("multihost", False, "A part for each host, in place of --part and --parts (TPU pods).")
    flags.DEFINE_integer("rows", 32, "Records encoded at once.", lower_bound=1)
    flags.mark_flag_as_required("config")


if __name__ == "__main__":
    define_flags()
    exits.run(main)
