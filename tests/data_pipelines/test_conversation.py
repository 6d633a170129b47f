# SPDX-License-Identifier: Apache-2.0
"""Ids, labels and column sources of conversations, against the golden files and by hand."""

import json
import pathlib

import numpy as np
import pytest

from data_pipelines.conversation import LinkAt, link, prompt, region_text, stop_id, tokenize
from data_pipelines.errors import CapacityError, DataError
from data_pipelines.tokenizer import load_tokenizer
from tests.parity import text as golden
from vllm2_jax.batch import IGNORE, IMAGE, LINK, REGION, TEXT
from vllm2_jax.tokens import QueryCounts

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "core"
CASES = json.loads((GOLDENS / "text.json").read_text())["cases"]
# The official code ignored these samples: it splits at role strings, encodes the fragments again, and with
# this small vocabulary their lengths do not add up. (40-46 are internlm2_chat.) We train their answers.
TRAINED_BY_US_ONLY = {
    40: "there are two dogs near the red car<|im_end|>",
    42: "a horse.<|im_end|>on green grass.<|im_end|>brown.<|im_end|>",
    43: "Sure, the results are person[DET][EMB][EMB2][EMB3][EMB4], traffic light"
    "[DET][EMB][EMB2][EMB3][EMB4].<|im_end|>",
    45: "red<|im_end|>",
    46: "red<|im_end|>green<|im_end|>",
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDENS / "tiny_tokenizer.model", legacy=False)


@pytest.fixture(scope="module")
def golden_tokenizers():
    return golden.tokenizers(GOLDENS)


def test_goldens():
    compared = 0
    for name, got, want in golden.cases(GOLDENS):
        np.testing.assert_array_equal(got, want, err_msg=name)
        compared += 1
    # 45 cases with ids, 7 of them without comparable labels; 2 that raise; 3 vocabularies, 2 prompts.
    assert compared == 45 + 38 + 2 + 3 + 2


def test_samples_that_the_official_code_ignores(golden_tokenizers):
    given_up = [number for number, case in enumerate(CASES) if golden.given_up(case)]
    # In 19 and 39 the answer is empty: there is nothing to train for us either.
    assert given_up == [19, 39, *TRAINED_BY_US_ONLY]
    for number in given_up:
        tokens = golden.run(CASES[number], golden_tokenizers)
        tokenizer = golden_tokenizers["internlm2" if number >= 40 else str(CASES[number]["legacy"])]
        trained = tokenizer.decode(tokens.ids[tokens.labels != IGNORE], keep_special=True)
        assert trained == TRAINED_BY_US_ONLY.get(number, ""), CASES[number]["name"]


def test_sources_and_indices(tokenizer):
    counts = QueryCounts(perception=2, generation=3)
    turns = [
        ("human", f"<image>\nfind {region_text(1)} and {region_text(2)}"),
        ("gpt", f"{link('dog', 'det', counts)}, {link('', 'gen', counts)}."),
    ]
    tokens = tokenize(turns, tokenizer, image_tokens=[3], regions=2, counts=counts)
    ids = tokenizer.ids
    assert tokens.index[tokens.source == IMAGE].tolist() == [0, 1, 2]
    assert tokens.ids[tokens.source == IMAGE].tolist() == [ids.patch] * 3
    assert tokens.index[tokens.source == REGION].tolist() == [0, 1]
    assert tokens.ids[tokens.source == LINK].tolist() == [ids.emb, ids.emb2, ids.emb, ids.emb, ids.emb]
    assert tokens.index[tokens.source == LINK].tolist() == [0, 1, 0, 1, 2]
    assert (tokens.index[tokens.source == TEXT] == 0).all()
    assert [at.token for at in tokens.links] == ["det", "gen"]
    for at in tokens.links:
        assert tokens.ids[at.start - 1] == getattr(ids, at.token) and tokens.source[at.start] == LINK
    # Links stay in the labels; the model masks their queries.
    assert (tokens.labels[tokens.source == LINK] != IGNORE).all()
    assert (tokens.labels[np.isin(tokens.source, [IMAGE, REGION])] == IGNORE).all()


def test_two_pictures_count_on(tokenizer):
    turns = [("human", "<image> and <image>\nwhat"), ("gpt", "dogs")]
    tokens = tokenize(turns, tokenizer, image_tokens=[2, 5])
    assert tokens.index[tokens.source == IMAGE].tolist() == list(range(7))


def test_prompt_ends_where_the_assistant_starts(tokenizer):
    turns = [("human", "<image>\nwhat is this"), ("gpt", "a horse"), ("human", "where")]
    open_turn = prompt(turns, tokenizer, image_tokens=[2])
    whole = tokenize([*turns, ("gpt", "on grass")], tokenizer, image_tokens=[2])
    n = len(open_turn.ids)
    assert tokenizer.decode(open_turn.ids[-1:]) == ":"
    np.testing.assert_array_equal(open_turn.ids, whole.ids[:n])
    assert (open_turn.labels == IGNORE).all()
    assert (whole.labels[n:] != IGNORE).all()


def test_link_text():
    assert link("cat", "det") == "cat[DET][EMB][EMB2][EMB3][EMB4]"
    assert link("", "gen") == "[GEN]" + "[EMB]" * 64
    assert region_text(3) == "<reg>region3<region></reg>" and region_text() == "<reg>region<region></reg>"
    with pytest.raises(ValueError, match="unknown link"):
        link("cat", "[DET]")
    with pytest.raises(ValueError, match="at most 8"):
        link("cat", "det", QueryCounts(perception=9))


@pytest.mark.parametrize("spare", range(6))
def test_no_cut_inside_a_link(tokenizer, spare):
    turns = [("human", "find"), ("gpt", f"the {link('dog', 'det')} and")]
    whole = tokenize(turns, tokenizer)
    start = whole.links[0].start
    # From just before the routing token to just behind the last query.
    tokens = tokenize(turns, tokenizer, max_length=start - 1 + spare)
    if spare < 5:
        assert len(tokens.ids) == start - 1 and tokens.links == [] and (tokens.source == TEXT).all()
    else:
        assert len(tokens.ids) == start + 4 and tokens.links == [LinkAt("det", start)]


def test_limit_counts_the_picture(tokenizer):
    turns = [("human", "<image>\nwhat"), ("gpt", "two dogs")]
    length = len(tokenize(turns, tokenizer, image_tokens=[30]).ids)
    assert len(tokenize(turns, tokenizer, image_tokens=[30], max_length=length).ids) == length
    cut = tokenize(turns, tokenizer, image_tokens=[30], max_length=length - 1)
    assert len(cut.ids) == length - 1 and cut.ids[-1] != tokenizer.ids.eos


@pytest.mark.parametrize("question", ["<image>\nwhat", "look at <reg>region1<region></reg>", "what"])
def test_no_cut_that_loses_a_picture_a_region_or_the_answer(tokenizer, question):
    pictures = [30] if "<image>" in question else []
    regions = question.count("<region>")
    turns = [("human", question), ("gpt", "two dogs")]
    with pytest.raises(CapacityError, match="columns do not fit into 66, and a cut would lose"):
        tokenize(turns, tokenizer, image_tokens=pictures, regions=regions, max_length=66)


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        ([("human", "what"), ("gpt", "a dog")], {"image_tokens": [3]}, "0 <image> for 1 images"),
        ([("human", "<image> what"), ("gpt", "a dog")], {}, "1 <image> for 0 images"),
        ([("human", "what"), ("gpt", "a <region>")], {"regions": 2}, "1 <region> for 2 regions"),
        ([("human", "what"), ("gpt", "<im_patch>")], {}, "the text holds <im_patch>"),
        ([("human", "what"), ("gpt", "a [DET] dog")], {}, r"\[DET\] is not followed by its 4 query"),
        ([("human", "what"), ("gpt", "[GEN][EMB][EMB]")], {}, r"\[GEN\] is not followed by its 64"),
        ([("human", "what"), ("gpt", "a [EMB2] dog")], {}, "1 query tokens .* outside a link"),
        ([("human", "what")], {}, "the last is an answer"),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], {}, "have to alternate"),
        ([], {}, "the turns are empty"),
        ([("human", "a"), ("gpt", "c")], {"format": "internlm2_chat"}, "no token of this tokenizer"),
    ],
)
def test_bad_samples(tokenizer, turns, options, message):
    with pytest.raises(DataError, match=message):
        tokenize(turns, tokenizer, **options)


def test_unknown_format(tokenizer):
    with pytest.raises(ValueError, match="unknown conversation format 'v2', there are v1, bare, plain"):
        tokenize([("human", "a"), ("gpt", "b")], tokenizer, format="v2")


def test_stop_ids(tokenizer, golden_tokenizers):
    assert stop_id(tokenizer, "v1") == tokenizer.ids.eos
    assert stop_id(golden_tokenizers["internlm2"], "internlm2_chat") == 521
    with pytest.raises(DataError, match="no token"):
        stop_id(tokenizer, "plain")
