# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, with the 26 special tokens of VisionLLM v2 in the vocabulary.

Vicuna and InternLM2 ship a sentencepiece model, encoded by the rule of `slow_llama.py`; a folder with only a
`tokenizer.json` goes through `tokenizers`.
"""

import dataclasses
import json
import pathlib

import sentencepiece
import tokenizers

from data_pipelines.errors import DataError
from data_pipelines.slow_llama import Added, SentencePieceBackend
from vllm2_jax.tokens import SPECIAL_TOKENS, SpecialIds


class HuggingFaceBackend:
    """A `tokenizer.json`. `specials` maps bos_token, eos_token, unk_token (and pad_token) to strings."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, specials: dict[str, str]):
        self.tokenizer, self.specials = tokenizer, specials

    def lookup(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def pieces(self, text: str) -> list[tuple[int, int]]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        # The span of an added token includes the blanks it ate; its last own character counts.
        ends = [begin + len(text[begin:end].rstrip()) for begin, end in encoding.offsets]
        begins = [begin for begin, _ in encoding.offsets]
        return [(i, max(b, e - 1)) for i, b, e in zip(encoding.ids, begins, ends, strict=True)]

    def decode(self, ids: list[int], keep_special: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=not keep_special)

    def save(self, folder: pathlib.Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config = json.dumps(self.specials, indent=1)
        (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that knows the special tokens.

    Attributes:
      backend: the sentencepiece or Hugging Face tokenizer.
      ids: ids of the special tokens; `ids.padding` is the id of `<unk>`, as in the official training.
      vocab_size: rows the embedding needs.
      n_new: special tokens that had to be added (26 for a base language model, 0 for a released
        VisionLLM v2); they are the last `n_new` ids.
    """

    backend: SentencePieceBackend | HuggingFaceBackend
    ids: SpecialIds
    vocab_size: int
    n_new: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS."""
        return [token_id for token_id, _ in self.pieces(text)]

    def pieces(self, text: str) -> list[tuple[int, int]]:
        """Ids of `text`, each with the index of the last character of `text` that it covers."""
        return self.backend.pieces(text)

    def decode(self, ids, *, keep_special: bool = False) -> str:
        """Text of `ids` (any iterable of ints); special tokens are left out unless asked for."""
        return self.backend.decode([int(i) for i in ids], keep_special)

    def lookup(self, token: str) -> int | None:
        """Id of one token, None if the vocabulary lacks it."""
        return self.backend.lookup(token)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes files from which `load_tokenizer` makes the same tokenizer, with `n_new` 0."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(folder)


def load_tokenizer(path: str | pathlib.Path, *, legacy: bool | None = None) -> Tokenizer:
    """Loads a tokenizer and adds the special tokens it lacks, in the order of `SPECIAL_TOKENS`.

    Args:
      path: a sentencepiece `.model` file, or a folder in Hugging Face layout with a `tokenizer.model`
        (preferred) or a `tokenizer.json`.
      legacy: the rule of the slow Llama tokenizer, see `SentencePieceBackend`. None reads `legacy` from
        the folder's `tokenizer_config.json`, and is True where nothing is said (transformers 4.34).

    Raises:
      DataError: no tokenizer at `path`, no BOS/EOS/unknown token, or a vocabulary that holds some of the
        special tokens in a layout that cannot be completed.
    """
    path = pathlib.Path(path)
    if path.is_file() and path.suffix == ".model":
        return _load_sentencepiece(path, {}, {}, True if legacy is None else legacy)
    config = _read_json(path / "tokenizer_config.json")
    if (path / "tokenizer.model").is_file():
        legacy = config.get("legacy", True) if legacy is None else legacy
        listed = _read_json(path / "added_tokens.json")
        return _load_sentencepiece(path / "tokenizer.model", config, listed, bool(legacy))
    if (path / "tokenizer.json").is_file():
        if legacy is not None:
            raise DataError(
                "`legacy` is a rule for sentencepiece models and this folder has none",
                file=path,
                remedy="leave legacy=None, or add the tokenizer.model",
            )
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        return _with_specials_hf(
            backend, {**_read_json(path / "special_tokens_map.json"), **config}, str(path)
        )
    raise DataError(
        "no tokenizer here: neither a sentencepiece .model file nor a folder with tokenizer.model or "
        "tokenizer.json",
        file=path,
        remedy="download the tokenizer files next to the model's weights",
    )


def _load_sentencepiece(path, config: dict, listed: dict, legacy: bool) -> Tokenizer:
    try:
        model = path.read_bytes()
        base = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"not a sentencepiece model ({error})", file=path, remedy="download the file again"
        ) from error
    added = {name: Added(token_id) for name, token_id in listed.items()}
    for token_id, entry in config.get("added_tokens_decoder", {}).items():
        added[entry["content"]] = Added(int(token_id), entry["lstrip"], entry["rstrip"])
    # The official training registers these three again and so makes them eat blanks, whatever the
    # files say (transformers 4.34, `_add_tokens`); they keep their ids.
    for token_id in (base.bos_id(), base.eos_id(), base.unk_id()):
        if token_id < 0:
            raise DataError("the model lacks <s>, </s> or <unk>", file=path, remedy="use another")
        added[base.id_to_piece(token_id)] = Added(token_id)
    if len({token.id for token in added.values()}) != len(added):
        raise DataError(
            "two added tokens share an id",
            file=path.parent / "added_tokens.json",
            remedy="make it agree with added_tokens_decoder in tokenizer_config.json",
        )
    missing = [t for t in SPECIAL_TOKENS.values() if t not in added]
    first = max([base.get_piece_size(), *(token.id + 1 for token in added.values())])
    added |= {token: Added(first + i) for i, token in enumerate(missing)}
    backend = SentencePieceBackend(model, added, legacy)
    base_ids = {"bos": base.bos_id(), "eos": base.eos_id(), "padding": base.unk_id()}
    return _finish(backend, base_ids, missing, path)


def _with_specials_hf(model: tokenizers.Tokenizer, config: dict, place: str) -> Tokenizer:
    names = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(role)
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            names[role] = token
    # Padding takes the place of <unk> in the official training; tokenizers without one name a pad token.
    roles = {"bos": "bos_token", "eos": "eos_token", "padding": "unk_token"}
    if "unk_token" not in names:
        roles["padding"] = "pad_token"
    base_ids = {}
    for name, role in roles.items():
        token_id = model.token_to_id(names.get(role, ""))
        if token_id is None:
            raise DataError(
                f"the tokenizer has no {role}",
                file=place,
                field=role,
                remedy="name it in tokenizer_config.json",
            )
        base_ids[name] = token_id
    missing = [t for t in SPECIAL_TOKENS.values() if model.token_to_id(t) is None]
    model.add_special_tokens(
        [tokenizers.AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in missing]
    )
    return _finish(HuggingFaceBackend(model, names), base_ids, missing, place)


def _finish(backend, base_ids: dict[str, int], missing: list[str], place) -> Tokenizer:
    try:
        ids = SpecialIds.find(backend.lookup, **base_ids)
    except ValueError as error:
        raise DataError(
            f"the vocabulary holds some of the special tokens already and lacked "
            f"{', '.join(missing) or 'none'}: {error}",
            file=place,
            remedy="start from the base language model's tokenizer or from a complete VisionLLM v2 one",
        ) from error
    return Tokenizer(backend, ids, backend.vocab_size, len(missing))


def _read_json(path: pathlib.Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error})", file=path, remedy="download the file again") from error
