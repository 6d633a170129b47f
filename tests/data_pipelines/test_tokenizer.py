# SPDX-License-Identifier: Apache-2.0
"""Vocabularies and ids; the recorded ones come from transformers 4.34.0."""

import json
import pathlib
import pickle
import shutil

import pytest
import tokenizers

from data_pipelines.errors import DataError
from data_pipelines.tokenizer import load_tokenizer
from vllm2_jax.tokens import SPECIAL_TOKENS

MODEL = pathlib.Path(__file__).parents[1] / "golden" / "core" / "tiny_tokenizer.model"


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "new"])
def tokenizer(request):
    return load_tokenizer(MODEL, legacy=request.param)


@pytest.fixture
def json_folder(tmp_path):
    """A folder with a byte-level tokenizer.json: 3 special tokens, 256 bytes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_special_tokens_follow_the_base_vocabulary_in_order(tokenizer):
    ids = [tokenizer.lookup(token) for token in SPECIAL_TOKENS.values()]
    assert ids == list(range(520, 546))
    assert (tokenizer.vocab_size, tokenizer.n_new) == (546, 26)
    assert (tokenizer.ids.bos, tokenizer.ids.eos, tokenizer.ids.padding) == (1, 2, 0)


# Recorded from LlamaTokenizer of transformers 4.34.0 with the official special tokens; the names are pieces.
RECORDED = {
    True: {
        "go [GEN][EMB] dog": ["▁g", "o", "[GEN]", "[EMB]", "▁dog"],
        "</img>\nwhat": ["</img>", "▁w", "hat"],
        "a car </s> USER": ["▁a", "▁car", "</s>", "▁", "U", "S", "E", "R"],
        "  two  dogs ": ["▁", "▁", "▁two", "▁", "▁dogs", "▁"],
        "\n": ["▁", "<0x0A>"],
        "é[DET]\n\n x ▁y<unk> z <s> k": (
            ["▁", "<0xC3>", "<0xA9>", "[DET]", "▁", "x", "▁", "▁", "y", "<unk>", "▁", "<0x7A>", "<s>", "▁k"]
        ),
    },
    False: {
        "go [GEN][EMB] dog": ["▁g", "o", "[GEN]", "[EMB]", "d", "og"],
        "</img>\nwhat": ["</img>", "w", "hat"],
        "a car </s> USER": ["▁a", "▁car", "</s>", "U", "S", "E", "R"],
        "  two  dogs ": ["▁", "▁", "▁two", "▁", "▁dogs", "▁"],
        "\n": ["▁", "<0x0A>"],
        "é[DET]\n\n x ▁y<unk> z <s> k": (
            ["▁", "<0xC3>", "<0xA9>", "[DET]", "x", "▁", "▁", "y", "<unk>", "<0x7A>", "<s>", "k"]
        ),
    },
}


@pytest.mark.parametrize("legacy", [True, False])
def test_pieces_of_the_slow_llama_tokenizer(legacy):
    tokenizer = load_tokenizer(MODEL, legacy=legacy)
    for text, pieces in RECORDED[legacy].items():
        assert tokenizer.encode(text) == [tokenizer.lookup(piece) for piece in pieces], text
    assert tokenizer.encode("") == []


def test_positions_point_at_the_last_character(tokenizer):
    text = "two 日本 [DET] dogs </s>é."
    at = {}
    for token_id, position in tokenizer.pieces(text):
        at.setdefault(token_id, position)
    assert text[at[tokenizer.ids.det]] == "]" and at[tokenizer.ids.det] == text.index("]")
    assert at[tokenizer.ids.eos] == text.index(">")
    positions = [position for _, position in tokenizer.pieces(text)]
    assert positions == sorted(positions) and positions[-1] == len(text) - 1
    byte = tokenizer.lookup("<0xE6>")  # first byte of both characters
    assert [text[p] for i, p in tokenizer.pieces(text) if i == byte] == ["日", "本"]


def test_decode_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("two dogs</s>")
    assert tokenizer.decode(ids).strip() == "two dogs"
    assert tokenizer.decode(ids, keep_special=True).strip() == "two dogs</s>"


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.n_new == 0 and again.ids == tokenizer.ids and again.vocab_size == tokenizer.vocab_size
    text = "a [GEN] b </s> <region>c"
    assert again.encode(text) == tokenizer.encode(text)  # so `legacy` came back too


def test_survives_another_process(tokenizer):
    text = "a [GEN] b"
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_config_decides_about_legacy_and_blanks(tmp_path):
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    kept = {"content": "<|im_end|>", "lstrip": False, "rstrip": False}
    config = {"legacy": False, "added_tokens_decoder": {"520": kept}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lookup("<|im_end|>") == 520 and tokenizer.ids.pad == 521
    assert not tokenizer.backend.legacy
    blank = tokenizer.lookup("▁")
    assert tokenizer.encode("dogs <|im_end|>")[-2:] == [blank, 520]
    assert tokenizer.encode("dogs </s>")[-2] != blank


def test_tokenizer_json(json_folder):
    tokenizer = load_tokenizer(json_folder)
    assert (tokenizer.n_new, tokenizer.vocab_size) == (26, 285)
    text = "é [DET] a"
    positions = tokenizer.pieces(text)
    assert positions == [(positions[0][0], 0), (positions[1][0], 0), (tokenizer.ids.det, 6), (67, 8)]
    assert tokenizer.decode(tokenizer.encode(text)) == "éa"
    tokenizer.save(json_folder / "saved")
    again = load_tokenizer(json_folder / "saved")
    assert again.n_new == 0 and again.ids == tokenizer.ids and again.encode(text) == tokenizer.encode(text)


def test_missing_tokenizer_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer here.*Remedy") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_broken_model_file(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        load_tokenizer(path)


def test_half_prepared_vocabulary_is_refused(tmp_path):
    # [EMB] first: the other [EMB..] cannot follow it directly once [PAD] and the rest are added.
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[EMB]": 520}))
    with pytest.raises(DataError, match=r"holds some of the special tokens.*consecutive ids"):
        load_tokenizer(tmp_path)


def test_added_tokens_with_one_id_are_refused(tmp_path):
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": 520, "<b>": 520}))
    with pytest.raises(DataError, match="share an id"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_without_bos_is_refused(json_folder):
    (json_folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(DataError, match="no bos_token"):
        load_tokenizer(json_folder)


def test_legacy_is_refused_where_it_means_nothing(json_folder):
    with pytest.raises(DataError, match="`legacy` is a rule for sentencepiece"):
        load_tokenizer(json_folder, legacy=True)
