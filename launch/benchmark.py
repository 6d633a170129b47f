# SPDX-License-Identifier: Apache-2.0
"""Measures speed as a ratio to a peer in the same run, on this machine.

    python -m launch.benchmark core --size mid        # train step and generation against PyTorch
    python -m launch.benchmark data                   # examples a second of one core
    python -m launch.benchmark grounding_dino         # detection at Swin-T size against transformers
    python -m launch.benchmark unipose                # poses at Swin-T size against plain PyTorch
    python -m launch.benchmark diffusion --pixels 256 # Stable Diffusion's UNet against diffusers
    python -m launch.benchmark deformable --devices 4 # deformable sampling against PyTorch
    python -m launch.benchmark deformable_tpu         # what the TPU compiler makes of it; needs no TPU

All but `data` and `deformable_tpu` need PyTorch: pip install -e '.[benchmark]'. Rounds of both sides
alternate; the best round of each counts, since everything else on the machine only ever adds time. Nothing
here is a test: a number holds for the machine and the moment that are printed with it.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from configs import base
from data_pipelines.collate import CollateSpec
from data_pipelines.measure import measure
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.build import Run, build_run
from launch.race import Timed, need, race, show
from launch.race_diffusion import diffusion
from launch.race_grounding_dino import grounding_dino
from launch.race_unipose import unipose
from launch.sampling import deformable, deformable_tpu
from vllm2_jax.batch import IGNORE, IMAGE, TEXT, Inputs, TaskRows, flatten_groups
from vllm2_jax.llm.generate import generate
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.sharding.partition import global_batch
from vllm2_jax.train.state import create, random_model
from vllm2_jax.vision.pixels import normalize

ROWS, COLUMNS = {"tiny": 8, "mid": 4}, {"tiny": 128, "mid": 512}
PROMPTS, NEW_TOKENS = 8, 64
# The vocabulary of the released model; at the tiny size that of the small tokenizer.
VOCAB, LOSS_CHUNK = {"tiny": 0, "mid": 32_026}, {"tiny": 0, "mid": 64}
ORDINARY = 600  # tokens below this are plain pieces of text


def core(args: argparse.Namespace) -> dict[str, Any]:
    """Train step and generation of the trunk against transformers' CLIP and Llama in PyTorch."""
    need("torch")
    from launch.peers import torch_core

    run = benchmark_run(args.size)
    batch = random_batch(run, ROWS[args.size])
    columns = ROWS[args.size] * COLUMNS[args.size]
    train = race(
        {"ours": training(run, batch), "peer": torch_core.Training(run.model, for_peer(run, batch))},
        args.rounds,
    )
    prompts = random_batch(run, PROMPTS, prompts=True)
    peer = torch_core.Generation(run.model, for_peer(run, prompts), NEW_TOKENS)
    ours = generation(run, prompts)
    made = race({"ours": ours, "peer": peer, "peer, one by one": peer.one_by_one}, args.rounds)
    show("train step", train, columns, "columns")
    show(f"generation, {PROMPTS} prompts", made, PROMPTS * NEW_TOKENS, "tokens")
    return {"train": train, "generation": made}


def data(args: argparse.Namespace) -> dict[str, Any]:
    """Examples a second that one process renders, tokenises and collates, in its CPU time."""
    config = base.get_config("tiny")  # its mixture is that of all sizes
    spec = CollateSpec(length=128, tile_size=112, tokens_per_tile=64)
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    found = {}
    for task, entry in config.data.mixture.to_dict().items():
        dataset = make_dataset(
            {task: entry}, tokenizer=tokenizer, spec=spec, groups=8, seed=0, threads=0, prefetch=0
        )
        found[task] = measure(dataset, batches=args.rounds)
        print(f"{task:<10}" + "   ".join(f"{value:8.1f} {name}" for name, value in found[task].items()))
    return found


def benchmark_run(size: str) -> Run:
    """The model at one size in float32 on one device, tower frozen, AdamW as in the recipe."""
    config = base.get_config(size)
    config.dtype = config.frozen_dtype = "float32"
    config.sharding.strategy, config.data.groups = "single", 1
    config.sharding.devices = "cpu:1" if jax.default_backend() == "cpu" else ""
    config.optimizer.groups = ((r"^(bridge|regions|llm)/", 1.0), (r"^(vision|queries)/", None))
    config.optimizer.warmup_steps, config.optimizer.schedule = 0, "constant"
    config.data.length = COLUMNS[size]
    config.model.llm.vocab, config.loss_chunk = VOCAB[size], LOSS_CHUNK[size]
    config.unroll = config.model.llm.depth if jax.default_backend() == "cpu" else 1
    return build_run(config)


def random_batch(run: Run, rows: int, *, prompts: bool = False) -> dict[str, TaskRows]:
    """Rows with one picture each and random text; prompts are half as long and differ in length."""
    rng = np.random.default_rng(0)
    size, per_tile = run.model.vision.image_size, run.model.tokens_per_tile
    length = run.spec.length if not prompts else per_tile + (run.spec.length - per_tile) // 2
    tokens = rng.integers(3, ORDINARY, (1, rows, length), dtype=np.int32)
    source = np.full(tokens.shape, TEXT, np.int32)
    source[..., 1 : 1 + per_tile] = IMAGE
    index = np.zeros(tokens.shape, np.int32)
    index[..., 1 : 1 + per_tile] = np.arange(rows)[:, None] * per_tile + np.arange(per_tile)
    lengths = np.linspace(length - 16, length, rows).astype(int) if prompts else np.full(rows, length)
    inputs = Inputs(
        tokens=tokens,
        source=source,
        index=index,
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        segments=(np.arange(length) < lengths[:, None]).astype(np.int32)[None],
        tiles=rng.integers(0, 256, (1, rows, size, size, 3), dtype=np.uint8),
        masks=np.zeros((1, 0, size, size), np.uint8),
        mask_tile=np.zeros((1, 0), np.int32),
    )
    labels = np.where(source == TEXT, tokens, IGNORE).astype(np.int32)
    links = np.zeros((1, rows, 0, 1), np.int32), np.zeros((1, rows, 0), bool)
    return {"chat": TaskRows(inputs, labels, *links, targets={})}


def for_peer(run: Run, batch: dict[str, TaskRows]) -> dict[str, np.ndarray]:
    """The same batch for PyTorch: padding on the left, pixels normalised and channels first."""
    rows = batch["chat"]
    inputs = jax.tree.map(lambda x: x[0], vars(rows.inputs))  # of the only group
    shift = [int((row == 0).sum()) for row in inputs["segments"]]

    def left(x: np.ndarray) -> np.ndarray:
        return np.stack([np.roll(row, by) for row, by in zip(x, shift, strict=True)])

    pixels = np.asarray(normalize(jnp.asarray(inputs["tiles"]), jnp.float32)).transpose(0, 3, 1, 2)
    return {
        "tokens": left(inputs["tokens"]).astype(np.int64),
        "image": left(inputs["source"] == IMAGE),
        "valid": left(inputs["segments"]).astype(np.int64),
        "labels": left(rows.labels[0]).astype(np.int64),
        "pixels": pixels,
    }


def training(run: Run, batch: dict[str, TaskRows]) -> Timed:
    """Our jitted train step on a batch that is on the device already."""
    state = create(run.plan)
    with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
        step = jax.jit(run.train_step, donate_argnums=0, out_shardings=(run.plan.shardings, None))
        placed = global_batch(run.mesh, run.strategy.rules, batch)
    box = [state]

    def once() -> float:
        with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
            box[0], metrics = step(box[0], placed)
        return float(metrics["loss"][0])

    return once


@struct.dataclass
class TextOnly:
    """Greedy choice among ordinary tokens: rows do not end or call a decoder, so both sides do equal work."""

    def __call__(self, logits: jax.Array, key: jax.Array, emitted: jax.Array) -> jax.Array:
        """The best of the first tokens of the vocabulary."""
        del key, emitted
        return jnp.argmax(logits[:, 3:ORDINARY], axis=-1) + 3


def generation(run: Run, batch: dict[str, TaskRows]) -> Timed:
    """Our jitted generation loop, from tiles and token ids to tokens."""
    model = random_model(run.plan)
    ids = run.tokenizer.ids

    @jax.jit
    def go(model: VisionLLMv2, inputs: Inputs) -> jax.Array:
        prompt, valid = flatten_groups(model.embed(inputs)), flatten_groups(inputs.segments) > 0
        table, key = model.queries.table(prompt.dtype), jax.random.key(0)
        sizes = {"counts": run.model.queries, "max_new": NEW_TOKENS, "max_links": 1}
        return generate(model.llm, table, prompt, valid, key, TextOnly(), ids=ids, **sizes).lengths

    with jax.set_mesh(run.mesh):
        inputs = global_batch(run.mesh, run.strategy.rules, batch["chat"].inputs)

    def once() -> int:
        with jax.set_mesh(run.mesh), axis_rules(run.strategy.activation_rules):
            return int(go(model, inputs).sum())

    if once() != PROMPTS * NEW_TOKENS:
        raise RuntimeError("a row ended early; the two sides would not do the same work")
    return once


def machine() -> str:
    """What the numbers hold for."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )


BENCHMARKS = {
    "core": core,
    "data": data,
    "grounding_dino": grounding_dino,
    "unipose": unipose,
    "diffusion": diffusion,
    "deformable": deformable,
    "deformable_tpu": deformable_tpu,
}


def main() -> int:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--size", choices=sorted(ROWS), default="mid", help="of the model, for core")
    parser.add_argument(
        "--pixels", type=int, default=0, help="side of the picture for a decoder; 0: what it is made for"
    )
    parser.add_argument(
        "--devices", type=int, default=1, help="CPU devices to split ours over, for deformable"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each side")
    parser.add_argument("--json", type=pathlib.Path, help="also write the seconds of all rounds to this file")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1")
    if args.devices < 1 or (args.devices > 1 and args.name != "deformable"):
        parser.error(f"--devices {args.devices}: give at least 1, and more than 1 to deformable alone")
    if args.pixels < 0:
        parser.error(f"--pixels {args.pixels}: give the side of a picture, or 0")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.absolute().parent}")
    if args.devices > 1:
        jax.config.update("jax_num_cpu_devices", args.devices)
    print(machine())
    found = BENCHMARKS[args.name](args)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
