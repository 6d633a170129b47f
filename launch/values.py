# SPDX-License-Identifier: Apache-2.0
"""What values the keys of a config may have, looked at before anything is built: all faults in one list.

Not all keys are here. Names of tasks, datasets, strategies and slices are checked by the code that looks them
up, and sizes that have to agree by the modules that need them.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import ml_collections

from data_pipelines.conversation import FORMATS
from vllm2_jax.nn.attention import IMPLEMENTATIONS
from vllm2_jax.nn.stack import REMAT
from vllm2_jax.train.optimizer import SCHEDULES as RATES
from vllm2_jax.train.step import SCHEDULES

DTYPES = ("float32", "bfloat16", "float16")
CHOICES: dict[str, Collection[str]] = {
    "dtype": DTYPES,
    "frozen_dtype": DTYPES,
    "attention": IMPLEMENTATIONS,
    "remat.vision": REMAT,
    "remat.llm": REMAT,
    "data.format": FORMATS,
    "optimizer.schedule": RATES,
    "step.schedule": SCHEDULES,
}
PATTERNS = ("optimizer.no_decay", "optimizer.muon", "init.fresh")
_LLM = tuple(f"model.llm.{name}" for name in ("width", "depth", "heads", "kv_heads", "mlp"))
_VISION = tuple(f"model.vision.{name}" for name in ("width", "depth", "heads", "mlp", "image_size", "patch"))
_ONE = (
    *("steps", "log_every", "save_every", "keep", "bad_steps", "unroll", "data.groups", "data.length"),
    *("step.accumulate", "eval.quick", "eval.rows", "eval.pictures", "eval.max_new"),
    *("model.regions.hidden", "model.queries.perception", "model.queries.generation", *_LLM, *_VISION),
)
_ZERO = (
    *("model.llm.vocab", "model.llm.lora.rank", "query_std", "loss_chunk", "profile_first", "profile_steps"),
    *("data.workers", "data.threads", "data.prefetch", "data.timeout", "eval.examples", "eval.every"),
    *("optimizer.peak", "optimizer.weight_decay", "optimizer.clip_norm"),
)
NUMBERS: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (_ONE, "at least 1", lambda x: x >= 1),
    (_ZERO, "at least 0", lambda x: x >= 0),
    (("seed",), "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32),
    (("optimizer.b1", "optimizer.b2"), "at least 0 and less than 1", lambda x: 0 <= x < 1),
    (("optimizer.eps",), "more than 0", lambda x: x > 0),
    (("optimizer.warmup_ratio",), "from 0 to 1", lambda x: 0 <= x <= 1),
    (("optimizer.warmup_steps",), "at least 0, or -1 for the ratio", lambda x: x >= -1),
)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError that lists every key with an impossible value; a missing key is no fault."""
    wrong = list(_faults(config))
    if wrong:
        raise ValueError("\n".join(f"config.{line}" for line in wrong))


def _faults(config: ml_collections.ConfigDict) -> Iterator[str]:
    choices = dict(CHOICES)
    for name in _get(config, "model.decoders") or ():
        choices |= {f"model.decoders.{name}.dtype": DTYPES, f"model.decoders.{name}.remat": REMAT}
    for key, known in choices.items():
        if (value := _get(config, key)) is not None and value not in known:
            yield f"{key} is {value!r}; choose one of {', '.join(known)}"
    for keys, text, holds in NUMBERS:
        for key in keys:
            if (value := _get(config, key)) is not None and not (math.isfinite(value) and holds(value)):
                yield f"{key} is {value}; it has to be {text}"
    for key in PATTERNS:
        if wrong := _pattern_fault(_get(config, key) or ""):
            yield f"{key} is {wrong}"
    for number, entry in enumerate(_get(config, "optimizer.groups") or ()):
        if wrong := _group_fault(entry):
            yield f"optimizer.groups[{number}] is {wrong}"


def _get(config: Any, key: str) -> Any:
    """The value at a dotted key, None if there is none."""
    for name in key.split("."):
        config = config.get(name) if hasattr(config, "get") else None
    return config


def _pattern_fault(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"no regular expression ({error}): {pattern!r}; put a \\ before what stands for itself"
    return ""


def _group_fault(entry: Any) -> str:
    try:
        pattern, multiplier = entry
    except (TypeError, ValueError):
        pattern = multiplier = None
    number = isinstance(multiplier, int | float) and math.isfinite(multiplier) and multiplier >= 0
    if not isinstance(pattern, str) or not (multiplier is None or number):
        return f"{entry!r}; give (regex, multiplier of the learning rate), with None for frozen"
    return _pattern_fault(pattern)
