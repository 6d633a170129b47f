# SPDX-License-Identifier: Apache-2.0
"""Generation: tokens and link states of the compiled loop, then the official calls one by one with the cache.

The official code feeds a routing token and its queries in one call; `Llama.step` takes the same columns.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tests.parity import Case, goldens
from tests.parity.model import build, config_for, inputs_for
from vllm2_jax.batch import flatten_groups
from vllm2_jax.llm.generate import generate
from vllm2_jax.llm.llama import Llama
from vllm2_jax.llm.sampling import Sampler
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.tokens import LINKS, SPECIAL_TOKENS, SpecialIds


@struct.dataclass
class Plan:
    """Emits given tokens at given steps, and the best one at the others."""

    steps: jax.Array
    tokens: jax.Array

    def __call__(self, logits, key, emitted):
        hit = emitted[:, None] == self.steps
        planned = jnp.where(hit, self.tokens, 0).sum(axis=1)
        return jnp.where(hit.any(axis=1), planned, jnp.argmax(logits, axis=-1))


def special_ids(sizes: dict) -> SpecialIds:
    """Ids of the golden vocabulary, whose special tokens follow the base words in our order."""
    ids = sizes["token_ids"]
    found = {name: sizes["base_vocab"] + i for i, name in enumerate(SPECIAL_TOKENS)}
    return SpecialIds(bos=ids["bos"], eos=ids["eos"], padding=ids["unk"], **found)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    sizes = goldens.config(folder)
    for name in ("generate_forced", "generate_biased"):
        data = goldens.arrays(folder, name)
        config, tensors = config_for(folder, name)
        model = build(config, tensors)
        inputs = jax.tree.map(jnp.asarray, inputs_for(data, config, sizes["token_ids"]))
        prompt = jax.jit(lambda model, inputs: flatten_groups(model.embed(inputs)))(model, inputs)
        yield f"{name} prompt", np.asarray(prompt), data["first_step_embeds"]
        ids = special_ids(sizes)
        for part in (_loop, _calls):
            for label, got, want in part(model, prompt, data, ids):
                yield f"{name} {label}", got, want


def _loop(
    model: VisionLLMv2, prompt: jax.Array, data: dict[str, np.ndarray], ids: SpecialIds
) -> Iterator[Case]:
    planned = "plan_step" in data
    choose = Plan(jnp.asarray(data["plan_step"]), jnp.asarray(data["plan_token"])) if planned else Sampler()
    want = data["sequences"][0, data["in/input_ids"].shape[1] :]
    blocks = [int(i) for i in np.flatnonzero(data["step_llm_length"][1:] > 1) + 1]
    # The official loop was stopped after its number of tokens; so is ours, by columns.
    budget = len(want) + int((data["step_llm_length"][1:] - 1).sum())
    out = generate(
        model.llm,
        model.queries.table(jnp.float32),
        prompt,
        jnp.ones(prompt.shape[:2], bool),
        jax.random.key(0),
        choose,
        ids=ids,
        counts=model.config.queries,
        max_new=budget,
        max_links=len(blocks) + 1,
    )
    yield "tokens", np.asarray(out.tokens)[0, : len(want)], want
    yield "number of tokens", np.asarray(out.lengths)[0], np.array(len(want))
    yield "number of links", np.asarray(out.n_links)[0], np.array(len(blocks))
    for link, call in enumerate(blocks):
        states = data[f"hidden_{call}"][0, 1:]
        yield f"link {link} states", np.asarray(out.states)[0, link, : len(states)], states


def _calls(
    model: VisionLLMv2, prompt: jax.Array, data: dict[str, np.ndarray], ids: SpecialIds
) -> Iterator[Case]:
    llm, counts = model.llm, model.config.queries
    queries = model.queries.table(jnp.float32)
    columns = data["final_cache_layer1_key"].shape[2]
    positions = jnp.arange(columns)[None]
    start = prompt.shape[1]
    ones = jnp.ones(prompt.shape[:2], jnp.int32)
    prefill = jax.jit(Llama.prefill, static_argnames="columns")
    hidden, caches = prefill(llm, prompt, positions=positions[:, :start], segments=ones, columns=columns)
    step, score = jax.jit(Llama.step), jax.jit(Llama.logits)
    banks = {getattr(ids, link.token): link.bank for link in LINKS}
    for call in range(int(data["n_steps"])):
        if call:
            token = int(data["step_input_token"][call])
            x = llm.embed_tokens(jnp.array([[token]]))
            if token in banks:
                offset = counts.offset(banks[token])
                x = jnp.concatenate([x, queries[None, offset : offset + counts.of(banks[token])]], axis=1)
            stop = start + x.shape[1]
            visible = jnp.arange(columns) <= jnp.arange(start, stop)[:, None]
            hidden, caches = step(
                llm,
                x,
                positions=positions[:, start:stop],
                caches=caches,
                column=jnp.int32(start),
                visible=visible[None],
            )
            start = stop
        tail = data[f"hidden_{call}"].shape[1]
        yield f"call {call} hidden states", np.asarray(hidden)[:, -tail:], data[f"hidden_{call}"]
        logits = np.asarray(score(llm, hidden))
        yield f"call {call} logits", logits[:, -tail:], data[f"logits_{call}"]
    yield "cached keys", np.asarray(caches[1].k), data["final_cache_layer1_key"]
    yield "cached values", np.asarray(caches[1].v), data["final_cache_layer1_value"]
