# SPDX-License-Identifier: Apache-2.0
"""Trains the small sentencepiece tokenizer that ships with the project.

    python -m data_pipelines.train_tokenizer --out data_pipelines/assets/tiny_tokenizer

It has 640 pieces: whole words for what the synthetic data says, letters and common fragments for other
English, bytes for the rest. Like Llama's it is BPE with byte fallback, no normalisation and a blank in front
of the text, so the same encoding rule serves both. The special tokens are added when it is loaded.
"""

import argparse
import io
import pathlib
import re
from collections.abc import Iterator

import sentencepiece

from data_pipelines.conversation import FORMATS
from data_pipelines.datasets.synthetic import TASKS, load
from vllm2_jax.tokens import SPECIAL_TOKENS

TINY_TOKENIZER = pathlib.Path(__file__).parent / "assets" / "tiny_tokenizer"
VOCABULARY = 640
_RECORDS = 400  # of every task
# The words around every turn are part of each sequence, so they have to be short in tokens.
_FRAMES = 3000

# Plain English, so that the most common words and fragments of other conversations get pieces too.
ENGLISH = """
What is this picture about? The photo shows a man and a woman on a street with some trees and a few cars.
Can you tell me what they are doing? They are walking their dog in the park, and it looks like a warm day.
There is a table with a plate of food, a glass of water and a small cup of coffee next to the window.
Which of the two people has the ball? The one in front of the house, who is looking at the camera.
I think that it could be early in the morning, because the light comes from the side and nobody is around.
Why would someone do that? It may be for work, or just for fun; one can not know it from the image alone.
How old is the building? It was built more than one hundred years ago, when the city was still very small.
Please explain how this works. First you take the large box, then you put the other thing into it.
We should not forget about those who were here before us, even if their names are no longer known to anyone.
His sister had been reading her book on the train when the station was closed for the rest of the night.
The first part of the answer is right, but the second part does not follow from what has been said above.
Most animals need water, and many of them also need a place where they can hide from the sun or from others.
Yes, there are several. No, there is only one of them. Maybe, but I am not sure. Thank you for your help!
Black and white cats, brown horses, young children, old people, high mountains, long roads, fast trains.
"""


def corpus() -> Iterator[str]:
    """The sentences to train on, special tokens taken out."""
    special = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS.values()))
    for task in TASKS:
        source = load(task=task, tile_size=14, decoder_size=14, level="people" if task == "pose" else "full")
        for index in range(_RECORDS):
            for _, text in source[index].turns:
                yield from (part.strip() for part in special.split(text) if part.strip())
    frame = FORMATS["v1"]
    yield from [frame.system, frame.human[0], f" {frame.opening}"] * _FRAMES
    yield from ENGLISH.strip().splitlines() * 10


def train(vocabulary: int = VOCABULARY) -> bytes:
    """The trained model; the same bytes on every run."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for tokenizer.model")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train())
    print(f"wrote {folder / 'tokenizer.model'}")


if __name__ == "__main__":
    main()
