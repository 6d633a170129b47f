# SPDX-License-Identifier: Apache-2.0
"""Configs: every key is read, misspelt ones are named, mixtures fit the loaders, tables fit the models."""

import functools
import importlib
import inspect
import pathlib

import jax
import ml_collections
import pytest

from configs import base, samples, stage2_7b, stage3_7b, stage3_paint_7b, start_7b
from configs.groups import GROUPS
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import MODELS
from data_pipelines import DATASETS
from data_pipelines.mixture import task_shapes
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import build, heldout, values
from launch.assemble import open_parts
from launch.sights import task_shape
from launch.values import check_values
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.evals import EVALS
from vllm2_jax.train.optimizer import multipliers
from vllm2_jax.train.released import model_leaves

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if "def get_config" in path.read_text(encoding="utf-8")
)


# Read as one value, by code that refuses keys it does not know.
WHOLE = ("model", "data.mixture", "eval.tasks", "parts")


def flat(config: ml_collections.ConfigDict, prefix: str = "") -> set[str]:
    """Dotted names of all leaves; what is read as one value (`to_dict`) counts as one."""
    names = set()
    for key, value in config.items():
        inside = isinstance(value, ml_collections.ConfigDict) and prefix + key not in WHOLE
        names |= flat(value, f"{prefix}{key}.") if inside else {prefix + key}
    return names


class Recorder:
    """A config that remembers which keys were read."""

    def __init__(self, config: ml_collections.ConfigDict, read: set[str], prefix: str = ""):
        self._config, self._read, self._prefix = config, read, prefix

    def __getattr__(self, key: str):
        return self[key]

    def __getitem__(self, key: str):
        value, name = self._config[key], self._prefix + key
        self._read.add(name)
        return (
            Recorder(value, self._read, f"{name}.") if isinstance(value, ml_collections.ConfigDict) else value
        )

    def keys(self):
        return self._config.keys()

    def to_dict(self) -> dict:
        self._read.update(f"{self._prefix}{key}" for key in self._config)
        return self._config.to_dict()


def test_every_key_is_read():
    config, read = base.get_config(), set()
    config.sharding.strategy = "single"
    config.eval.every = config.eval.quick = config.eval.examples = 1
    recorder = Recorder(config, read)
    run = build.build_run(recorder)
    build.loop_config(recorder, "workdir")
    build.data_iterator(recorder, run)
    heldout.hooks(recorder, run, functools.partial(build.rebuild, run))
    heldout.read_cases(recorder, run)
    with pytest.raises(ConversionError, match=r"config\.parts is empty"):
        open_parts(recorder, ".")
    assert flat(config) - read == set()


def test_misspelt_keys_are_named():
    with pytest.raises(AttributeError, match='Did you mean "peak"'):
        base.get_config().optimizer.peek = 1.0
    with pytest.raises(ValueError, match="unknown model size '7B'; choose one of tiny, mid, 7b, 26b"):
        base.get_config("7B")


def test_impossible_values_are_named_with_their_keys():
    config = base.get_config()
    check_values(config)
    config.dtype, config.remat.llm, config.seed = "flaot32", "ful", -1
    config.optimizer.muon, config.init.fresh, config.optimizer.peak = "(kernel", "[a", float("nan")
    config.optimizer.groups = (("^(llm", 1.0), ("^vision", -1.0), ("^queries", None), (".*",))
    with pytest.raises(ValueError) as found:
        check_values(config)
    wanted = (
        "config.dtype is 'flaot32'; choose one of float32, bfloat16",
        "config.remat.llm is 'ful'; choose one of none, full",
        "config.optimizer.peak is nan; it has to be at least 0",
        "config.seed is -1; it has to be from 0 to",
        "config.optimizer.muon is no regular expression (missing ), unterminated subpattern at position 0)",
        "config.init.fresh is no regular expression (unterminated character set",
        "config.optimizer.groups[0] is no regular expression (missing )",
        "config.optimizer.groups[1] is ('^vision', -1.0); give (regex, multiplier",
        "config.optimizer.groups[3] is ('.*',); give (regex, multiplier",
    )
    for line, text in zip(str(found.value).splitlines(), wanted, strict=True):
        assert line.startswith(text)


def test_all_keys_that_are_checked_are_there():
    """Those that are not are passed over: a config that lies beside old weights may lack new ones."""
    config = base.get_config()
    for key in (*values.CHOICES, *values.PATTERNS, *(key for keys, *_ in values.NUMBERS for key in keys)):
        value = config
        for name in key.split("."):
            value = value[name]


@pytest.mark.parametrize("name", FILES)
def test_config_file_opens_with_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"--config configs/{name}.py" in module.__doc__ or f"make {name}" in module.__doc__
    config = module.get_config()
    check_values(config)
    assert config.is_locked
    assert flat(config) == flat(base.get_config())


@pytest.mark.parametrize("name", ["stage2_7b", "stage3_7b", "stage3_paint_7b"])
def test_rows_have_room_for_their_tiles_and_queries(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    sizes = build.model_config(config, load_tokenizer(TINY_TOKENIZER))
    lengths = {}
    for task, shape in task_shapes(config.data.mixture.to_dict()).items():
        lengths[task] = shape.length or config.data.length
        queries = max(shape.links.values(), default=0) * shape.queries(sizes.queries)
        tiles = 1 if task == "pose" else shape.tiles  # as many as all of its keypoints leave room for
        assert tiles * sizes.tokens_per_tile + queries <= lengths[task] - 40  # the words of every prompt
    assert lengths["t2i"] == 512 < lengths["edit"]
    assert len(set(lengths.values())) <= 3  # each is one more program for a layer


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_fits_its_loaders(name):
    task_shapes(MIXTURES[name])
    for task in MIXTURES[name].values():
        for dataset, options in task["datasets"].items():
            load = DATASETS[options.get("loader", dataset)]
            given = {key: value for key, value in options.items() if key not in ("loader", "weight")}
            inspect.signature(load).bind(tile_size=1, **given)


def test_mixtures_agree_on_where_pictures_are():
    roots = {}
    for mixture in MIXTURES.values():
        for task in mixture.values():
            for options in task["datasets"].values():
                roots.setdefault(options.get("annotations"), set()).add(options.get("image_root"))
    del roots[None]  # scenes have no file
    assert {file for file, found in roots.items() if len(found) > 1} == set()


@pytest.mark.parametrize("name", HELDOUT)
def test_held_out_sets_fit_their_loaders(name):
    for entry in HELDOUT[name].values():
        if entry.get("decoder"):
            assert set(entry["metrics"]) <= set(EVALS)
            task_shape(entry)
        for dataset, options in entry["datasets"].items():
            load = DATASETS[options.get("loader", dataset)]
            given = {key: value for key, value in options.items() if key not in ("loader", "weight")}
            inspect.signature(load).bind(tile_size=1, **given)


@pytest.mark.parametrize("parts", ["chat", "det", "pose", "edit", "chat+det+pose+edit"])
def test_parts_of_the_samples(parts):
    config = samples.get_config(parts)
    assert flat(config) == flat(base.get_config())
    mixture, evaluated = config.data.mixture.to_dict(), config.eval.tasks.to_dict()
    task_shapes(mixture)
    for entry in evaluated.values():
        if entry.get("decoder"):
            assert set(entry["metrics"]) <= set(EVALS)
            task_shape(entry)
    for task in [*mixture.values(), *evaluated.values()]:
        for dataset, options in task["datasets"].items():
            load = DATASETS[options.get("loader", dataset)]
            given = {key: value for key, value in options.items() if key not in ("loader", "weight")}
            inspect.signature(load).bind(tile_size=1, **given)
    decoders = {task["decoder"] for task in mixture.values() if "decoder" in task}
    assert decoders == set(config.model.decoders)
    with pytest.raises(ValueError, match="there are chat, det, pose, edit"):
        samples.get_config(parts + "+sing")


def test_stages_begin_with_what_is_assembled_for_them():
    start, stage2, stage3, paint = (
        build.model_config(config, load_tokenizer(TINY_TOKENIZER))
        for config in (
            start_7b.get_config("stage2"),
            *(module.get_config() for module in (stage2_7b, stage3_7b, stage3_paint_7b)),
        )
    )
    leaves = model_leaves(start)
    assert model_leaves(stage2) == leaves
    assert stage3 == stage2 or model_leaves(stage3) == leaves
    assert model_leaves(paint).items() < leaves.items()
    parts = start_7b.get_config("stage2").parts.to_dict()
    assert {f"decoders/{name}" for name in start.decoders} == set(parts) - {"trunk"}


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("groups", GROUPS)
def test_groups_fit_the_model(size, groups):
    config = base.get_config(size)
    sizes = build.model_config(config, load_tokenizer(TINY_TOKENIZER))
    model = jax.eval_shape(functools.partial(build.make_model, sizes, 0))
    table = multipliers(model, GROUPS[groups])
    assert (table["llm/layers/mlp/down/kernel"] is None) == (groups == "stage1_pretrain")


def test_root_is_filled_in():
    config = base.get_config()
    with config.unlocked(), config.ignore_type():
        config.data.mixture = MIXTURES["stage1_tune"]
    with pytest.raises(ValueError, match=r"--config.data.root=FOLDER"):
        build.fill_root(config.data.mixture.to_dict(), "")
    filled = build.fill_root(config.data.mixture.to_dict(), "/data")
    assert filled["question"]["datasets"]["vcr"]["image_root"] == "/data/vcr"


def test_vocabulary_that_is_too_small_is_named():
    config = base.get_config()
    config.model.llm.vocab = 100
    with pytest.raises(ValueError, match=r"config.model.llm.vocab is 100: set it to 0"):
        build.model_config(config, load_tokenizer(TINY_TOKENIZER))
