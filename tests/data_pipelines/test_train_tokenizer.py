# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that ships is the one its script trains, and suits the synthetic text and other text."""

import string

from data_pipelines.conversation import FORMATS
from data_pipelines.datasets.synthetic import TASKS, load
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER, VOCABULARY, train


def test_training_gives_the_shipped_file():
    assert train() == (TINY_TOKENIZER / "tokenizer.model").read_bytes()


def test_every_text_survives():
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    assert tokenizer.vocab_size == VOCABULARY + 26 and tokenizer.n_new == 26
    for text in (string.printable[:95].strip(), "Zwölf Kühe, 漢字 und ein 🦊!", "two  blanks"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_synthetic_text_is_short():
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    pieces = words = 0
    for task in TASKS:
        source = load(task=task, tile_size=14, decoder_size=14, level="people" if task == "pose" else "full")
        for index in range(1000, 1010):
            for _, text in source[index].turns:
                text = text.split("[")[0].replace("<image>", "")
                pieces += len(tokenizer.encode(text))
                words += len(text.split())
    assert pieces / words < 1.7
    assert len(tokenizer.encode(FORMATS["v1"].system)) < 40
