# SPDX-License-Identifier: Apache-2.0
"""Ids as the slow Llama tokenizer of transformers 4.34 makes them from a sentencepiece model.

VisionLLM v2 was trained on these ids and later versions of transformers give others, so the rule is written
here over `sentencepiece`: cut the text at the added tokens, drop the blanks beside them, let sentencepiece
encode what lies between.
"""

import dataclasses
import json
import pathlib
import re

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.errors import DataError

BLANK = "▁"  # how sentencepiece writes a blank inside a piece


@dataclasses.dataclass(frozen=True)
class Added:
    """A token that is cut out of the text before anything else, and whether it eats the blanks beside it."""

    id: int
    lstrip: bool = True
    rstrip: bool = True


class SentencePieceBackend:
    """Ids of the slow Llama tokenizer.

    `legacy=True`: every stretch of text, also one after an added token, gets the dummy blank in front.
    `legacy=False` (Vicuna 1.5): only the start of the text gets it.
    """

    def __init__(self, model: bytes, added: dict[str, Added], legacy: bool):
        self.model, self.added, self.legacy = model, added, legacy
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
        proto.normalizer_spec.add_dummy_prefix = legacy
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        # Longest first, as the trie of transformers prefers `<region>` to a token that starts it.
        longest = sorted(added, key=len, reverse=True)
        self.cut = re.compile("|".join(re.escape(token) for token in longest))

    def lookup(self, token: str) -> int | None:
        if token in self.added:
            return self.added[token].id
        token_id = self.processor.piece_to_id(token)
        return None if token_id == self.processor.unk_id() else token_id

    @property
    def vocab_size(self) -> int:
        return max([self.processor.get_piece_size(), *(t.id + 1 for t in self.added.values())])

    def pieces(self, text: str) -> list[tuple[int, int]]:
        if self.legacy or not text:
            return self._cut_and_encode(text)
        # The non-legacy tokenizer writes the dummy blank itself, once, and takes it back if the text
        # starts with an added token. Positions count from the blank, hence the - 1.
        found = self._cut_and_encode(BLANK + text.replace(BLANK, " "))
        added_ids = {token.id for token in self.added.values()}
        if len(found) > 1 and found[0][0] == self.lookup(BLANK) and found[1][0] in added_ids:
            found = found[1:]
        return [(token_id, max(at - 1, 0)) for token_id, at in found]

    def _cut_and_encode(self, text: str) -> list[tuple[int, int]]:
        found, begin, eat_left = [], 0, False
        cuts = [(*match.span(), self.added[match.group()]) for match in self.cut.finditer(text)]
        for start, end, token in [*cuts, (len(text), len(text), None)]:
            between = text[begin:start]
            if token and token.lstrip:
                between = between.rstrip()
            if eat_left:
                begin += len(between) - len(between.lstrip())
                between = between.lstrip()
            found += [(token_id, begin + at) for token_id, at in self._encode(between)]
            if token:
                found.append((token.id, end - 1))
                begin, eat_left = end, token.rstrip
        return found

    def _encode(self, text: str) -> list[tuple[int, int]]:
        """Ids of a stretch without added tokens, each with the last character it covers."""
        if not text:
            return []
        # Without the dummy blank sentencepiece may drop leading blanks; a known start, cut off
        # afterwards, keeps them (transformers 4.34 does the same).
        guard = "" if self.legacy or text[0] not in (BLANK, " ") else "<unk>"
        pieces = self.processor.encode(guard + text, out_type=str)
        pieces = pieces[len(self.processor.encode(guard, out_type=str)) if guard else 0 :]
        found, pending, at = [], b"", -1 if self.legacy else 0
        for piece in pieces:
            token_id = self.processor.piece_to_id(piece)
            if self.processor.is_byte(token_id):
                # The bytes of one character are one piece each; it counts when it is complete.
                pending += bytes([int(piece[3:5], 16)])
                found.append((token_id, at))
                if _is_complete(pending):
                    pending, at = b"", at + 1
            else:
                at += len(piece)
                found.append((token_id, max(at - 1, 0)))
        if at != len(text):
            raise DataError(
                f"the sentencepiece model rewrites {text!r} while encoding it ({pieces}), so labels "
                "cannot be placed",
                remedy="use a model with the identity normalizer and without remove_extra_whitespaces",
            )
        return found

    def decode(self, ids: list[int], keep_special: bool) -> str:
        names = {token.id: name for name, token in self.added.items()}
        text, run = "", []
        for token_id in ids:
            if token_id not in names:
                run.append(token_id)
            elif keep_special:
                text += self.processor.decode(run) + names[token_id]
                run = []
        return text + self.processor.decode(run)

    def save(self, folder: pathlib.Path) -> None:
        (folder / "tokenizer.model").write_bytes(self.model)
        flags = {"normalized": False, "single_word": False, "special": True}
        added = {
            str(t.id): {"content": name, "lstrip": t.lstrip, "rstrip": t.rstrip, **flags}
            for name, t in self.added.items()
        }
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": self.legacy}
        config |= {"added_tokens_decoder": added}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _is_complete(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False
