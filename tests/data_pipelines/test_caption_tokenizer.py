# SPDX-License-Identifier: Apache-2.0
"""Captions as ids: CLIP's byte pairs on a vocabulary written here, and our own small tokenizer."""

import json

import pytest

from data_pipelines.caption_tokenizer import END, START, load_caption_tokenizer
from data_pipelines.errors import DataError
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER

LETTERS = "abcdefghijklmnopqrstuvwxyz'!0123456789"


@pytest.fixture
def clip(tmp_path):
    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), START, END, "do", "dog</w>", "'s</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n' s</w>\n")
    return tmp_path, {token: i for i, token in enumerate(vocabulary)}


def test_clip_cuts_words_and_merges_pairs(clip):
    folder, ids = clip
    tokenize = load_caption_tokenizer(str(folder))
    words = [START, "dog</w>", "'s</w>", "a</w>", "1</w>", "2</w>", "!</w>", END, END]
    assert tokenize("  DOG's \n a 12!", 9).tolist() == [ids[word] for word in words]


def test_what_is_too_long_loses_its_end_and_what_is_empty_is_padding(clip):
    folder, ids = clip
    tokenize = load_caption_tokenizer(str(folder))
    assert tokenize("a a a a a", 4).tolist() == [ids[x] for x in (START, "a</w>", "a</w>", END)]
    assert tokenize("", 4).tolist() == [ids[x] for x in (START, END, END, END)]


def test_the_small_tokenizer_serves_a_small_text_encoder():
    tokenize, ours = load_caption_tokenizer(), load_tokenizer(TINY_TOKENIZER)
    text = "a large red circle"
    ids = tokenize(text, 30)
    n = len(ours.encode(text))
    assert ids[0] == ours.ids.bos
    assert ours.decode(ids[1 : 1 + n]) == text
    assert set(ids[1 + n :].tolist()) == {ours.ids.eos}


def test_what_raises(clip, tmp_path):
    folder, _ = clip
    with pytest.raises(DataError, match="no tokenizer here"):
        load_caption_tokenizer(str(tmp_path / "nowhere"))
    (folder / "vocab.json").write_text('{"a": 0, "d": 1, "o": 2, "do": 3}')
    with pytest.raises(DataError, match=r"not CLIP's tokenizer|lacks"):
        load_caption_tokenizer(str(folder))
