# SPDX-License-Identifier: Apache-2.0
"""From a config to the things it describes. Configs end here: the library takes dataclasses."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.collate import CollateSpec
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.decoders import decoder_configs
from vllm2_jax.llm.llama import LlamaConfig
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.model import ModelConfig, VisionLLMv2
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.rope import RopeConfig
from vllm2_jax.sharding.mesh import count_slices, find_devices, find_strategy, make_mesh, parse_sizes
from vllm2_jax.sharding.partition import check_groups, host_groups
from vllm2_jax.sharding.strategies import Strategy
from vllm2_jax.tokens import QueryCounts
from vllm2_jax.train.loop import LoopConfig
from vllm2_jax.train.optimizer import OptimizerConfig, make_schedule, make_tx
from vllm2_jax.train.state import Plan, TrainState, plan
from vllm2_jax.train.step import make_train_step
from vllm2_jax.vision import VISION
from vllm2_jax.vision.bridge import BridgeConfig
from vllm2_jax.vision.regions import RegionConfig

Config: TypeAlias = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Run:
    """What training, evaluation and compilation share.

    Attributes:
      model: sizes of the model.
      tokenizer: of its language model.
      spec: how examples become rows.
      strategy, mesh: where things go.
      plan: shapes and shardings of the train state.
      train_step: `(state, batch) -> (state, metrics)`, not compiled.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    spec: CollateSpec
    strategy: Strategy
    mesh: Mesh
    plan: Plan
    train_step: Callable[..., Any]


def build_run(config: Config) -> Run:
    """Everything but data and weights; allocates nothing on the devices.

    Raises:
      ValueError: an impossible config, a mesh that does not fit the devices, groups that do not fit the mesh,
        or a table of groups that does not fit the model.
    """
    tokenizer = load_tokenizer(config.data.tokenizer or TINY_TOKENIZER)
    model = model_config(config, tokenizer)
    strategy = find_strategy(config.sharding.strategy)
    devices = find_devices(config.sharding.devices)
    mesh = make_mesh(strategy, devices, parse_sizes(config.sharding.mesh))
    check_groups(config.data.groups, mesh, strategy.rules)
    settings = config.optimizer.to_dict()
    # A config that comes out of a checkpoint's JSON has lists where tuples were.
    settings["groups"] = tuple((pattern, multiplier) for pattern, multiplier in settings["groups"])
    optimizer = OptimizerConfig(steps=config.steps, **settings)
    tx = make_tx(optimizer)
    state = plan(
        functools.partial(make_model, model, config.seed),
        tx,
        optimizer.groups,
        mesh,
        strategy,
        frozen_dtype=None if config.frozen_dtype == "float32" else config.frozen_dtype,
    )
    step = make_train_step(state.graphdef, tx, make_schedule(optimizer), seed=config.seed, **config.step)
    return Run(model, tokenizer, collate_spec(config, model), strategy, mesh, state, step)


def make_model(config: ModelConfig, seed: int) -> VisionLLMv2:
    """The model with random weights."""
    return VisionLLMv2(config, rngs=Rngs(seed))


def model_config(config: Config, tokenizer: Tokenizer) -> ModelConfig:
    """Sizes of the model; widths that have to agree are given once in the config and copied here."""
    sizes = config.model.to_dict()
    kind = sizes["vision"].pop("kind")
    if kind not in VISION:
        raise ValueError(f"config.model.vision.kind: unknown tower {kind!r}; there are {', '.join(VISION)}")
    vision = VISION[kind][0](**sizes["vision"], attention=config.attention)
    llm = _llama(sizes["llm"], tokenizer.vocab_size)
    return ModelConfig(
        vision=vision,
        vision_layer=sizes["vision_layer"],
        bridge=BridgeConfig(**sizes["bridge"], width_in=vision.width, width_out=llm.width),
        regions=RegionConfig(**sizes["regions"], width=vision.width, width_out=llm.width, patch=vision.patch),
        llm=llm,
        queries=QueryCounts(**sizes["queries"]),
        query_std=config.query_std,
        named_links=config.named_links,
        decoders=decoder_configs(sizes["decoders"], config.dtype),
        dtype=config.dtype,
        remat=config.remat.to_dict(),
        attention=config.attention,
        unroll=config.unroll,
        loss_chunk=config.loss_chunk,
    )


def _llama(sizes: dict[str, Any], vocab: int) -> LlamaConfig:
    lora, rope = sizes.pop("lora"), sizes.pop("rope")
    sizes["vocab"] = sizes["vocab"] or vocab
    if sizes["vocab"] < vocab:
        raise ValueError(
            f"the tokenizer has {vocab} tokens, config.model.llm.vocab is {sizes['vocab']}: set it to 0 or "
            f"to {vocab}, or point config.data.tokenizer to the tokenizer of this model"
        )
    adapters = LoRAConfig(**lora) if lora["rank"] else None
    return LlamaConfig(**sizes, rope=RopeConfig(**rope), lora=adapters)


def collate_spec(config: Config, model: ModelConfig, *, strict: bool = True) -> CollateSpec:
    """How examples become rows; `strict` as in training."""
    return CollateSpec(
        length=config.data.length,
        tile_size=model.vision.image_size,
        tokens_per_tile=model.tokens_per_tile,
        counts=model.queries,
        format=config.data.format,
        truncate=config.data.truncate,
        strict=strict,
    )


def fill_root(value: Any, root: str) -> Any:
    """A mixture with `{root}` in its paths replaced.

    Raises:
      ValueError: a path needs a root and there is none, or the root is a bucket.
    """
    if isinstance(value, Mapping):
        return {key: fill_root(entry, root) for key, entry in value.items()}
    if isinstance(value, str) and "{root}" in value:
        if not root:
            raise ValueError(f"the mixture reads {value}: give the folder as --config.data.root=FOLDER")
        if "://" in root:
            raise ValueError(
                f"config.data.root={root}: data is read from folders; mount the bucket on every host, as "
                "launch.pod does (--data), and give the folder where it is"
            )
        return value.replace("{root}", root)
    return value


def data_iterator(config: Config, run: Run) -> Any:
    """The batches of this process, for `train.loop.train`."""
    dataset = make_dataset(
        fill_root(config.data.mixture.to_dict(), config.data.root),
        tokenizer=run.tokenizer,
        spec=run.spec,
        groups=config.data.groups,
        mine=host_groups(run.mesh, run.strategy.rules, config.data.groups),
        seed=config.seed,
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        timeout=config.data.timeout,
    )
    return iter(dataset)


def rebuild(run: Run, state: TrainState) -> VisionLLMv2:
    """The model inside a train state."""
    return nnx.merge(run.plan.graphdef, state.params, state.frozen)


def loop_config(config: Config, workdir: str) -> LoopConfig:
    """Settings of the loop."""
    return LoopConfig(
        workdir=workdir,
        steps=config.steps,
        log_every=config.log_every,
        save_every=config.save_every,
        keep=config.keep,
        bad_steps=config.bad_steps,
        profile_first=config.profile_first,
        profile_steps=config.profile_steps,
        **config.init,
    )


def describe(run: Run) -> str:
    """One line for the log: devices, mesh and what is trained."""
    count = {
        name: sum(x.size for x in jax.tree.leaves(getattr(run.plan.abstract, name)))
        for name in ("params", "frozen")
    }
    slices = count_slices(list(run.mesh.devices.flat))
    return (
        f"{run.mesh.size} devices in {slices} slice(s), mesh {dict(run.mesh.shape)}; "
        f"{count['params']:,} parameters trained, {count['frozen']:,} frozen"
    )
