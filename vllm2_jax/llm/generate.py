# SPDX-License-Identifier: Apache-2.0
"""Text and super links from embedded prompts: one compiled loop for a whole batch.

Every turn feeds one column of each row through the model. A row is a small state machine: it feeds the token
it emitted last; if that was a routing token, it feeds the queries of that link, one a turn, whose hidden
states are what a decoder reads, and only then emits again. All rows share the column of the cache; which
columns of a row count is a mask, and positions count those. So a row's states are those of one teacher-forced
pass over its finished sequence, whatever else is in the batch. (The official code feeds a link's queries in
the same turn as its routing token, and takes one row only: `modeling_visionllmv2.py` 452-546. The numbers
are the same.)
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.llm.llama import Caches, Llama
from vllm2_jax.llm.sampling import Choose, Sampler
from vllm2_jax.tokens import BANKS, LINKS, QueryCounts, SpecialIds

NO_LINK = -1  # in `Generation.kind`


@struct.dataclass
class Generation:
    """What came out. Axes: B rows, N columns of budget, K links, Q queries of the longest bank, D width.

    Attributes:
      tokens: what each row emitted, the end-of-sequence token or stop sequence included and queries not;
        padding afterwards.
      lengths: tokens each row emitted.
      states: hidden states at the queries of each row's links, in the order of their routing tokens in
        `tokens`; a bank of fewer queries leaves the last places zero.
      kind: entry of `LINKS` of each link, NO_LINK where there is none.
      n_links: complete links of each row. A link that the budget cut is not counted and has no `kind`.
      overflow: a row has more links than the K places; the text is not affected, the states of the links
        after the K-th are missing.
      finished: the row ended by itself; False if the budget did it.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, " B"]
    states: Float[Array, "B K Q D"]
    kind: Int[Array, "B K"]
    n_links: Int[Array, " B"]
    overflow: Bool[Array, " B"]
    finished: Bool[Array, " B"]


@struct.dataclass
class State:
    """The loop between two turns. S columns of cache: the prompt's, then one a turn.

    Attributes:
      turn: turns so far, and the place after the prompt that the next column goes to.
      last: token each row emitted last, to be fed unless a link is open.
      pending: queries of the open link that are still to be fed; 0 when none is open.
      link: entry of `LINKS` of the open, or else of the latest, link.
      position: rotary position of the next column: the columns that count so far.
      done: the row emitted its end; it goes on being computed, and none of it counts.
      valid: which columns of the cache count.
      caches: keys and values of each layer.
      tokens, lengths, states, kind, n_links: as in `Generation`.
    """

    turn: Int[Array, ""]
    last: Int[Array, " B"]
    pending: Int[Array, " B"]
    link: Int[Array, " B"]
    position: Int[Array, " B"]
    done: Bool[Array, " B"]
    valid: Bool[Array, "B S"]
    caches: Caches
    tokens: Int[Array, "B N"]
    lengths: Int[Array, " B"]
    states: Float[Array, "B K Q D"]
    kind: Int[Array, "B K"]
    n_links: Int[Array, " B"]


@functools.partial(jax.jit, static_argnames=("ids", "counts", "max_new", "max_links", "stop", "vocab"))
def generate(
    llm: Llama,
    queries: Float[Array, "Q D"],
    prompt: Float[Array, "B T D"],
    valid: Bool[Array, "B T"],
    key: jax.Array,
    choose: Choose = Sampler(),  # noqa: B008
    *,
    ids: SpecialIds,
    counts: QueryCounts = QueryCounts(),  # noqa: B008
    max_new: int,
    max_links: int,
    stop: tuple[tuple[int, ...], ...] = (),
    vocab: int | None = None,
) -> Generation:
    """Continues embedded prompts; compiled once for given shapes and sizes.

    Args:
      llm: the language model; as an argument of `jax.jit` it may be sharded or in bfloat16.
      queries: the table of all queries (`QueryBanks.table`).
      prompt: embedded columns (`VisionLLMv2.embed`), with the query columns of links that are already there.
      valid: which columns count. Padding may stand anywhere; a row without a column comes back empty.
      key: randomness of `choose`.
      choose: a `Sampler`, or any other pytree that is called like one.
      ids: the tokenizer's special tokens.
      counts: queries of a link.
      max_new: budget of columns a row: tokens and the queries of links together, so that it bounds the cache.
      max_links: links a row whose states are kept.
      stop: token sequences that end a row like the end-of-sequence token. A text can be tokenised in more
        ways than one, so the decoded text is to be cut by `cut_at` as well.
      vocab: tokens that the tokenizer has. Later rows of the head are never chosen: vocabularies are padded
        to round sizes, and such rows mean nothing. None allows all.

    Raises:
      ValueError: a table of queries of another size, a budget below 1, an empty stop sequence.
    """
    if queries.shape[0] != counts.total:
        raise ValueError(f"{queries.shape[0]} queries, but {counts} makes {counts.total}; pass all banks")
    if max_new < 1 or not all(stop):
        raise ValueError(f"max_new {max_new} must be at least 1 and no stop sequence empty, here {stop}")
    routes = jnp.array([getattr(ids, link.token) for link in LINKS])
    sizes = jnp.array([counts.of(link.bank) for link in LINKS])
    offsets = jnp.array([counts.offset(link.bank) for link in LINKS])

    def emit(state: State, hidden: jax.Array, active: jax.Array) -> State:
        """Rows that are `active` emit a token, read from their newest hidden state."""
        logits = llm.logits(hidden)
        if vocab is not None:
            logits = jnp.where(jnp.arange(logits.shape[1]) < vocab, logits, -jnp.inf)
        chosen = choose(logits, jax.random.fold_in(key, state.turn), state.lengths)
        last = jnp.where(active, chosen, state.last)
        tokens = _put(state.tokens, (state.lengths,), last, active)
        lengths = state.lengths + active
        ended = (last == ids.eos) | _ends_with(tokens, lengths, stop)
        done = state.done | (active & ended)
        return dataclasses.replace(state, last=last, tokens=tokens, lengths=lengths, done=done)

    def turn(state: State) -> State:
        live, in_link = ~state.done, state.pending > 0
        place = sizes[state.link] - state.pending  # of the query to be fed, where a link is open
        x = jnp.where(
            in_link[:, None],
            queries[jnp.where(in_link, offsets[state.link] + place, 0)].astype(llm.dtype),
            llm.embed_tokens(state.last[:, None])[:, 0],
        )
        column = prompt.shape[1] + state.turn
        valid = jax.lax.dynamic_update_slice(state.valid, live[:, None], (0, column))
        hidden, caches = decoder.step(
            x[:, None],
            positions=state.position[:, None],
            caches=state.caches,
            column=column,
            visible=valid[:, None],
            lengths=state.position + 1,
        )
        hidden = hidden[:, 0]

        hit = state.last[:, None] == routes
        opens = live & ~in_link & hit.any(axis=1)
        link = jnp.where(opens, hit.argmax(axis=1), state.link)
        pending = jnp.where(opens, sizes[link], jnp.maximum(state.pending - 1, 0))
        completes = in_link & (pending == 0)
        state = dataclasses.replace(
            state,
            turn=state.turn + 1,
            pending=pending,
            link=link,
            position=state.position + live,
            valid=valid,
            caches=caches,
            states=_put(state.states, (state.n_links, place), hidden, in_link),
            kind=_put(state.kind, (state.n_links,), link, completes),
            n_links=state.n_links + completes,
        )
        return emit(state, hidden, live & (pending == 0) & (state.turn < max_new))

    decoder = llm.unstacked()

    def goes_on(state: State) -> jax.Array:
        return (state.turn < max_new) & ~state.done.all()

    state, hidden = _start(
        llm, prompt, valid, ids, max_new=max_new, max_links=max_links, longest=max(map(counts.of, BANKS))
    )
    state = jax.lax.while_loop(goes_on, turn, emit(state, hidden, ~state.done))
    return Generation(
        tokens=state.tokens,
        lengths=state.lengths,
        states=state.states,
        kind=state.kind,
        n_links=state.n_links,
        overflow=state.n_links > max_links,
        finished=state.done,
    )


def _start(
    llm: Llama,
    prompt: Float[Array, "B T D"],
    valid: Bool[Array, "B T"],
    ids: SpecialIds,
    *,
    max_new: int,
    max_links: int,
    longest: int,
) -> tuple[State, jax.Array]:
    """The state after the prompts, and the hidden state of each row's last column."""
    rows, length, width = prompt.shape
    counted = jnp.cumsum(valid, axis=1)
    hidden, caches = llm.prefill(
        prompt,
        positions=jnp.maximum(counted - 1, 0),
        segments=valid.astype(jnp.int32),
        columns=length + max_new,
    )
    last_column = length - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, last_column[:, None, None], axis=1)[:, 0]
    none = jnp.zeros(rows, jnp.int32)
    state = State(
        turn=jnp.zeros((), jnp.int32),
        last=none + ids.padding,
        pending=none,
        link=none,
        position=counted[:, -1],
        done=~valid.any(axis=1),
        valid=jnp.pad(valid, ((0, 0), (0, max_new))),
        caches=caches,
        tokens=jnp.full((rows, max_new), ids.padding, jnp.int32),
        lengths=none,
        states=jnp.zeros((rows, max_links, longest, width), hidden.dtype),
        kind=jnp.full((rows, max_links), NO_LINK, jnp.int32),
        n_links=none,
    )
    return state, hidden


def _put(table: jax.Array, index: tuple[jax.Array, ...], value: jax.Array, where: jax.Array) -> jax.Array:
    """Writes one value into each row's own table at the row's own index, if `where` and if it lies inside."""
    if table.size == 0:
        return table  # no links are kept at all

    def one(row, index, value, where):
        first = jnp.where(where, index[0], row.shape[0])
        return row.at[(first, *index[1:])].set(value, mode="drop")

    return jax.vmap(one)(table, index, value, where)


def _ends_with(
    tokens: Int[Array, "B N"], lengths: Int[Array, " B"], stop: Sequence[Sequence[int]]
) -> Bool[Array, " B"]:
    """Whether the tokens a row emitted end with one of the sequences."""
    ends = jnp.zeros(lengths.shape, bool)
    for sequence in stop:
        n = len(sequence)
        at = lengths[:, None] - n + jnp.arange(n)
        tail = jnp.take_along_axis(tokens, jnp.clip(at, 0, tokens.shape[1] - 1), axis=1)
        ends |= (lengths >= n) & (tail == jnp.array(sequence)).all(axis=1)
    return ends


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Decoded text up to the first of the stop strings that occurs in it."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
