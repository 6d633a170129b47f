# SPDX-License-Identifier: Apache-2.0
"""Captions as ids for a decoder's own text encoder: start, text, end, and ends as padding.

CLIP's vocabulary is not the language model's. A folder with `vocab.json` and `merges.txt` (the `tokenizer`
folder of Stable Diffusion) is CLIP's; anything that `tokenizer.load_tokenizer` opens serves as well, for text
encoders that were trained on it.
"""

import dataclasses
import functools
import pathlib

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data_pipelines.errors import DataError
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER

START, END = "<|startoftext|>", "<|endoftext|>"
# What CLIP's byte pairs never cross: contractions, runs of letters, single digits, runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class CaptionTokenizer:
    """Text to ids.

    Attributes:
      backend: what encodes text without start and end.
      start, end: ids around the text; `end` is the padding too.
    """

    backend: "tokenizers.Tokenizer | Tokenizer"
    start: int
    end: int

    def __call__(self, text: str, length: int) -> Int[np.ndarray, " {length}"]:
        """Exactly `length` ids; a text that is too long loses its end, as in CLIP."""
        if isinstance(self.backend, Tokenizer):
            found = self.backend.encode(text)
        else:
            found = self.backend.encode(text, add_special_tokens=False).ids
        ids = np.full(length, self.end, np.int32)
        ids[0] = self.start
        kept = found[: length - 2]
        ids[1 : 1 + len(kept)] = kept
        return ids


@functools.cache
def load_caption_tokenizer(path: str = "") -> CaptionTokenizer:
    """Opens a tokenizer for captions; every process does it once.

    Args:
      path: a folder of CLIP's tokenizer, or what `load_tokenizer` takes; "" is the small one that ships.

    Raises:
      DataError: no tokenizer there.
    """
    folder = pathlib.Path(path or TINY_TOKENIZER)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        other = load_tokenizer(folder)
        return CaptionTokenizer(other, other.ids.bos, other.ids.eos)
    try:
        model = models.BPE.from_file(
            str(vocabulary),
            str(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    except Exception as error:  # the library raises nothing more precise
        raise DataError(
            f"not CLIP's tokenizer ({error})", file=folder, remedy="fetch the files again"
        ) from error
    backend = tokenizers.Tokenizer(model)
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    start, end = backend.token_to_id(START), backend.token_to_id(END)
    if start is None or end is None:
        raise DataError(f"the vocabulary lacks {START} or {END}", file=vocabulary, remedy="use CLIP's")
    return CaptionTokenizer(backend, start, end)
