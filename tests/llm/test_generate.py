# SPDX-License-Identifier: Apache-2.0
"""Generation against teacher-forced passes over what it emitted, row by row, without a cache or padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.llm import small
from vllm2_jax.llm.generate import NO_LINK, Generation, cut_at, generate
from vllm2_jax.llm.llama import Llama
from vllm2_jax.llm.sampling import Sampler
from vllm2_jax.tokens import LINKS, SPECIAL_TOKENS, QueryCounts, SpecialIds

COUNTS = QueryCounts(perception=2, generation=5)
EOS, PADDING = 2, 0
IDS = SpecialIds(bos=1, eos=EOS, padding=PADDING, **{name: 35 + i for i, name in enumerate(SPECIAL_TOKENS)})
ROUTES = [getattr(IDS, link.token) for link in LINKS]
PROMPTS = (3, 7, 1, 5)  # columns of each row's prompt
WIDE = 8


@struct.dataclass
class Plan:
    """Emits given tokens: row b's n-th is `tokens[b, n]`."""

    tokens: jax.Array

    def __call__(self, logits, key, emitted):
        return jnp.take_along_axis(self.tokens, emitted[:, None], axis=1)[:, 0]


@pytest.fixture(scope="module")
def llm():
    return small.model()


@pytest.fixture(scope="module")
def queries():
    return jax.random.normal(jax.random.key(8), (COUNTS.total, small.CONFIG.width))


def prompts(llm):
    """Embedded prompts, the padding on the left, the right or in between; garbage in the padding."""
    rng = np.random.default_rng(3)
    valid = np.zeros((len(PROMPTS), WIDE), bool)
    valid[0, -3:] = valid[1, :7] = valid[2, 4] = valid[3, [0, 2, 3, 6, 7]] = True
    ids = np.array(rng.integers(3, 30, valid.shape))
    return llm.embed_tokens(jnp.asarray(ids)), jnp.asarray(valid)


def teacher_forced(llm, queries, prompt, valid, out: Generation, row: int):
    """Hidden states of one row's whole sequence in one pass, and what stands in each column after the prompt.

    The columns come as (token number, None) or (link number, query number).
    """
    x, columns, links = [prompt[row][valid[row]]], [], 0
    for n in range(int(out.lengths[row])):
        token = int(out.tokens[row, n])
        columns.append((n, None))
        x.append(llm.embed_tokens(jnp.array([[token]]))[0])
        if token in ROUTES:
            bank = LINKS[ROUTES.index(token)].bank
            for query in range(COUNTS.of(bank)):
                columns.append((links, query))
                x.append(queries[None, COUNTS.offset(bank) + query])
            links += 1
    x = jnp.concatenate(x)
    length, room = len(x), 80  # padded, so that all rows share one compiled pass
    x = jnp.pad(x, ((0, room - length), (0, 0)))[None]
    positions = jnp.arange(room)[None]
    segments = (positions < length).astype(jnp.int32)
    return whole_pass(llm, x, positions=positions, segments=segments)[0, :length], columns


whole_pass = jax.jit(Llama.__call__)


@struct.dataclass
class Restless:
    """Greedy, after `noise[b, n]` is added to the logits of row b's n-th token: varied, yet without luck."""

    noise: jax.Array

    def __call__(self, logits, key, emitted):
        return jnp.argmax(logits + self.noise[jnp.arange(len(emitted)), emitted], axis=-1)


def restless(columns):
    noise = np.random.default_rng(6).normal(size=(len(PROMPTS), columns, small.VOCAB)) * 4
    noise[..., ROUTES] += 4
    noise[:, : columns // 5, EOS] -= 100
    noise[0, columns // 4, EOS] += 100
    return Restless(jnp.asarray(noise, jnp.float32))


def test_equals_teacher_forcing_with_links_of_all_kinds(llm, queries):
    """Every token is the best after what stands before it; every stored state is that of the full pass."""
    choose = restless(60)
    out = run(llm, queries, choose, max_new=60, max_links=16)
    prompt, valid = prompts(llm)
    tokens = links = 0
    for row in range(len(PROMPTS)):
        states, columns = teacher_forced(llm, queries, prompt, valid, out, row)
        logits = llm.logits(states)
        start = int(valid[row].sum())
        for i, (n, query) in enumerate(columns[:60]):
            if query is None:
                assert (logits[start + i - 1] + choose.noise[row, n]).argmax() == out.tokens[row, n]
                tokens += 1
            elif n < out.n_links[row]:
                np.testing.assert_allclose(out.states[row, n, query], states[start + i], atol=2e-5)
                links += 1
    assert tokens > 60 and links > 60
    kinds = np.asarray(out.kind)
    assert set(kinds.ravel()) == {NO_LINK, *range(len(LINKS))}
    assert len(set(np.asarray(out.lengths).tolist())) > 1
    np.testing.assert_array_equal(out.n_links, (kinds != NO_LINK).sum(1))


def test_greedy_is_the_default(llm, queries):
    prompt, valid = prompts(llm)
    settings = {"ids": IDS, "counts": COUNTS, "max_new": 5, "max_links": 1}
    out = generate(llm, queries, prompt, valid, jax.random.key(0), **settings)
    for row in range(len(PROMPTS)):
        states, _ = teacher_forced(llm, queries, prompt, valid, out, row)
        best = np.asarray(llm.logits(states)).argmax(-1)[int(valid[row].sum()) - 1 :]
        length = int(out.lengths[row])
        np.testing.assert_array_equal(out.tokens[row, :length], best[:length])


def plan(*rows, width=40):
    """A plan of words; short rows go on with token 9."""
    names = {"DET": IDS.det, "GEN": IDS.gen, "POSE": IDS.pose, "EDIT": IDS.edit, "EOS": EOS}
    tokens = np.full((len(rows), width), 9)
    for row, words in zip(tokens, rows, strict=True):
        numbers = [names.get(word) or int(word) for word in words.split()]
        row[: len(numbers)] = numbers
    return Plan(jnp.asarray(tokens, jnp.int32))


ROWS = ("10 DET 11 DET 12 GEN 13 EOS", "POSE EOS", "10 11 EDIT DET EOS", "20 21 22 23 EOS")


def run(llm, queries, choose, *, seed=0, **options):
    prompt, valid = prompts(llm)
    settings = {"ids": IDS, "counts": COUNTS, "max_new": 24, "max_links": 4} | options
    return generate(llm, queries, prompt, valid, jax.random.key(seed), choose, **settings)


def test_forced_rows_give_the_planned_tokens_links_and_states(llm, queries):
    out = run(llm, queries, plan(*ROWS))
    kinds = [[LINKS[k].token if k != NO_LINK else "" for k in row] for row in np.asarray(out.kind)]
    assert kinds == [["det", "det", "gen", ""], ["pose", "", "", ""], ["edit", "det", "", ""], [""] * 4]
    np.testing.assert_array_equal(out.n_links, [3, 1, 2, 0])
    np.testing.assert_array_equal(out.lengths, [8, 2, 5, 5])
    np.testing.assert_array_equal(
        out.tokens[2, :6], [10, 11, IDS.edit, IDS.det, EOS, PADDING], "padding follows the end"
    )
    assert out.finished.all() and not out.overflow.any()
    prompt, valid = prompts(llm)
    for row in range(4):
        states, columns = teacher_forced(llm, queries, prompt, valid, out, row)
        for i, (n, query) in enumerate(columns):
            if query is not None:
                want = states[int(valid[row].sum()) + i]
                np.testing.assert_allclose(out.states[row, n, query], want, atol=2e-5)
    assert (np.asarray(out.states[0, 0, COUNTS.perception :]) == 0).all()


def test_more_links_than_places_are_reported_and_leave_the_text_alone(llm, queries):
    few, many = (run(llm, queries, plan(*ROWS), max_links=n) for n in (1, 4))
    np.testing.assert_array_equal(few.overflow, [True, False, True, False])
    np.testing.assert_array_equal(few.tokens, many.tokens)
    np.testing.assert_array_equal(few.n_links, many.n_links)
    np.testing.assert_array_equal(few.states[:, 0], many.states[:, 0])
    none = run(llm, queries, plan(*ROWS), max_links=0)
    np.testing.assert_array_equal(none.tokens, many.tokens)


def test_the_budget_counts_tokens_and_queries(llm, queries):
    # Row 0 in columns: 10 DET q q 11 DET q q 12 GEN ...
    for budget, links, tokens in ((8, 2, 4), (7, 1, 4), (3, 0, 2)):
        out = run(llm, queries, plan(*ROWS), max_new=budget)
        assert (int(out.n_links[0]), int(out.lengths[0])) == (links, tokens), budget
        assert (np.asarray(out.kind[0]) != NO_LINK).sum() == links
        assert out.finished.tolist() == [False, budget >= 4, False, budget >= 5]


def test_stop_sequences_end_a_row(llm, queries):
    # The last one is longer than what its row has said when it could begin.
    out = run(llm, queries, plan(*ROWS), stop=((21, 22), (13,), (11, 12), (20, 20)))
    np.testing.assert_array_equal(out.lengths, [7, 2, 5, 3])
    assert out.finished.all()
    assert cut_at("a dog ### Human", ["\n", "###"]) == "a dog "
    assert cut_at("a dog", ["###"]) == "a dog"
    for stop in (["\n", "###"], ["###", "\n"]):
        assert cut_at("a dog ### Human\nA cat", stop) == "a dog "
        assert cut_at("a dog\n### Human", stop) == "a dog"
    assert cut_at("dog", ["dog and cat"]) == "dog"


def test_a_row_does_not_depend_on_the_others(llm, queries):
    prompt, valid = prompts(llm)
    settings = {"ids": IDS, "counts": COUNTS, "max_new": 24, "max_links": 4}
    both = run(llm, queries, restless(24))
    one = Restless(restless(24).noise[1:2])
    alone = generate(llm, queries, prompt[1:2], valid[1:2], jax.random.key(0), one, **settings)
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[1])
    np.testing.assert_allclose(alone.states[0], both.states[1], atol=2e-5)


def test_an_empty_row_comes_back_empty(llm, queries):
    prompt, valid = prompts(llm)
    out = generate(
        llm,
        queries,
        prompt,
        valid.at[1].set(False),
        jax.random.key(0),
        ids=IDS,
        counts=COUNTS,
        max_new=6,
        max_links=1,
    )
    assert out.lengths[1] == 0 and (out.tokens[1] == PADDING).all() and out.lengths[0] == 6


def test_settings_and_prompts_change_without_compiling_again(llm, queries):
    before = generate._cache_size()
    outs = [
        run(llm, queries, Sampler(temperature, top_p), max_new=11)
        for temperature, top_p in ((0.0, 1.0), (0.7, 0.9), (1e6, 1.0))
    ]
    again, other = (run(llm, queries, Sampler(1e6), max_new=11, seed=seed).tokens for seed in (0, 1))
    assert generate._cache_size() == before + 1
    assert (np.asarray(outs[0].tokens) != np.asarray(outs[2].tokens)).any()
    np.testing.assert_array_equal(again, outs[2].tokens)
    assert (other[:, 0] != again[:, 0]).all()
    # All tokens are about as likely, so only a new draw in every turn makes another one.
    said = [set(row[:length]) for row, length in zip(again.tolist(), outs[2].lengths, strict=True)]
    assert max(map(len, said)) > 5


def test_a_bfloat16_model_generates(queries):
    out = run(small.model(dtype=jnp.bfloat16), queries, plan(*ROWS))
    assert out.states.dtype == jnp.bfloat16 and out.n_links.tolist() == [3, 1, 2, 0]


def test_dynamic_positions_count_the_columns_of_a_row(llm, queries):
    """Up to `max_positions` nothing changes; with the next column the angles do."""
    # The last query of the picture in the first row is column 18: 3 of the prompt, 15 of the answer.
    rope = dataclasses.replace(small.CONFIG.rope, scaling="dynamic", factor=2.0, max_positions=18)
    long = small.model(dataclasses.replace(small.CONFIG, rope=rope))
    short = small.model(dataclasses.replace(long.config, rope=dataclasses.replace(rope, max_positions=17)))
    want, same, other = (run(m, queries, plan(*ROWS)).states for m in (llm, long, short))
    np.testing.assert_allclose(same, want, atol=1e-6)
    changed = np.abs(np.asarray(other - want)).max(-1) > 1e-3
    assert np.argwhere(changed).tolist() == [[0, 2, COUNTS.generation - 1]]


def test_bad_arguments_name_the_remedy(llm, queries):
    with pytest.raises(ValueError, match="pass all banks"):
        run(llm, queries[:3], plan(*ROWS))
    with pytest.raises(ValueError, match="at least 1"):
        run(llm, queries, plan(*ROWS), max_new=0)


def test_padding_of_the_vocabulary_is_never_chosen(llm, queries):
    prompt, valid = prompts(llm)
    options = {"ids": IDS, "counts": COUNTS, "max_new": 6, "max_links": 1}
    sampler = Sampler(temperature=5.0)
    free, bound = (
        generate(llm, queries, prompt, valid, jax.random.key(0), sampler, **options, vocab=vocab)
        for vocab in (None, 30)
    )
    assert free.tokens.max() >= 30 > bound.tokens.max()
    greedy = generate(llm, queries, prompt, valid, jax.random.key(0), **options, vocab=30)
    best = generate(llm, queries, prompt, valid, jax.random.key(0), **options)
    first = np.asarray(best.tokens[:, 0])
    assert (first >= 30).any() and (greedy.tokens < 30).all()
    # Where the best token was allowed, nothing changes.
    np.testing.assert_array_equal(np.asarray(greedy.tokens[:, 0])[first < 30], first[first < 30])
