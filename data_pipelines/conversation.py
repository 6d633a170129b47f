# SPDX-License-Identifier: Apache-2.0
"""From turns of a conversation to the columns of the language model, with their labels.

The ids are those of the official code (`conversation.py`, `mm_utils.py`; golden file text.json). The labels
are placed by the position of each piece in the prompt. The official code tokenises fragments again and
subtracts their lengths, and where that sum disagrees it silently ignores the whole sample.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from data_pipelines.errors import CapacityError, DataError
from data_pipelines.tokenizer import Tokenizer
from vllm2_jax.batch import IGNORE, IMAGE, LINK, REGION, TEXT
from vllm2_jax.tokens import EMB_TOKENS, GENERATION_BANKS, LINKS, SPECIAL_TOKENS, QueryCounts
from vllm2_jax.tokens import Link as LinkKind

Turn = tuple[str, str]
IMAGE_MARK = SPECIAL_TOKENS["image"]


@dataclasses.dataclass(frozen=True)
class Format:
    """How a language model wants its turns written.

    Attributes:
      system: what precedes the first turn.
      human: text before and after a human turn.
      opening: text that opens the assistant's turn; generation starts after it.
      answer: text before and after an answer; both are trained with it.
      stop: the token that ends an answer, None where none does.
      split_images: encode the text between two `<image>` on its own. Otherwise `<image>` is an added token
        like the others and eats the blanks beside it.
    """

    system: str
    human: tuple[str, str]
    opening: str
    answer: tuple[str, str]
    stop: str | None
    split_images: bool = True


FORMATS = {
    "v1": Format(  # Vicuna 1.1 and 1.5
        system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. ",
        human=("USER: ", " "),
        opening="ASSISTANT:",
        answer=(" ", "</s>"),
        stop="</s>",
    ),
    # "v1" without the prompt before its first turn: 29 columns of the small tokenizer, nearly half of a short
    # row. For models from nothing, which no prompt has made polite.
    "bare": Format(system="", human=("USER: ", " "), opening="ASSISTANT:", answer=(" ", "</s>"), stop="</s>"),
    "plain": Format(  # pretraining of the connector: a picture and its caption
        system="", human=("", ""), opening="", answer=("", "\n"), stop=None, split_images=False
    ),
    "internlm2_chat": Format(
        system="<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>",
        human=("<|im_start|>user\n", "<|im_end|>"),
        opening="<|im_start|>assistant\n",
        answer=("", "<|im_end|>"),
        stop="<|im_end|>",
    ),
}


@dataclasses.dataclass(frozen=True)
class LinkAt:
    """A super link in the sequence: a `token` of `vllm2_jax.tokens.LINKS`, the column of its first query."""

    token: str
    start: int


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The columns of one sample, no padding.

    Attributes:
      ids: token of each column; image columns hold `<im_patch>`.
      labels: `ids` where the text is an answer (its links included), IGNORE elsewhere.
      source: TEXT, IMAGE, REGION or LINK, as in `vllm2_jax.batch`.
      index: number of the image token (counted over all pictures), of the region, or of the query within
        its link; 0 for text.
      links: the links in order.
      lost: how many more there were before a cut.
    """

    ids: Int[np.ndarray, " L"]
    labels: Int[np.ndarray, " L"]
    source: Int[np.ndarray, " L"]
    index: Int[np.ndarray, " L"]
    links: list[LinkAt]
    lost: int = 0


def link(name: str, token: str, counts: QueryCounts | None = None) -> str:
    """`name` followed by a super link: `link("cat", "det")` is `cat[DET][EMB][EMB2][EMB3][EMB4]`.

    Perception links number their queries; generation links repeat `[EMB]`.
    """
    kind = next((kind for kind in LINKS if kind.token == token), None)
    if kind is None:
        raise ValueError(f"unknown link {token!r}, there are {', '.join(k.token for k in LINKS)}")
    return name + SPECIAL_TOKENS[token] + "".join(_query_tokens(kind, counts or QueryCounts()))


def region_text(number: int | None = None) -> str:
    """How a conversation names its region; `number` counts from 1.

    The official evaluations with a single region leave the number out.
    """
    return f"<reg>region{'' if number is None else number}<region></reg>"


def stop_id(tokenizer: Tokenizer, format: str) -> int:
    """Id of the token that ends an answer.

    Raises:
      DataError: the format has none, or the tokenizer does not know it as one token.
    """
    stop = _format(format).stop
    token_id = None if stop is None else tokenizer.lookup(stop)
    if token_id is None:
        raise DataError(
            f"format {format!r} ends answers with {stop!r}, which is no token of this tokenizer",
            remedy="use the format and the tokenizer of the same language model",
        )
    return token_id


def tokenize(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    *,
    format: str = "v1",
    image_tokens: Sequence[int] = (),
    regions: int = 0,
    counts: QueryCounts | None = None,
    max_length: int | None = None,
    wrap_images: bool = False,
) -> Tokens:
    """The columns and labels of a conversation that ends with an answer.

    Args:
      turns: ("human" | "gpt", text), alternating; an answer before the first question is dropped, as in the
        official code. An empty answer leaves only the opening of the turn and trains nothing.
      tokenizer: see `data_pipelines.tokenizer`.
      format: a key of `FORMATS`.
      image_tokens: columns of each picture, one entry for each `<image>`.
      regions: how many `<region>` the text has to hold.
      counts: queries of a link; the released models' by default.
      max_length: most columns, pictures included; what is too long is cut at the end, before the link that
        the limit falls into. A cut may drop whole links: `Tokens.lost` of them. None: no limit. (The official
        limit counts a picture as one column and can cut the picture itself off.)
      wrap_images: put `<img>` and `</img>` around each picture (`use_im_start_end`, off in all releases).

    Raises:
      CapacityError: a sample that does not fit and cannot be cut without losing a picture, a region or all
        labels.
      DataError: turns out of order, or counts of `<image>`, `<region>` or query tokens that disagree.
    """
    segments = _segments(_format(format), _in_order(turns, answered=True))
    columns = _columns(segments, tokenizer, format, image_tokens, regions, counts, wrap_images)
    if max_length is None or len(columns.ids) <= max_length:
        return columns
    return _cut(columns, max_length)


def prompt(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    *,
    format: str = "v1",
    image_tokens: Sequence[int] = (),
    regions: int = 0,
    counts: QueryCounts | None = None,
    wrap_images: bool = False,
) -> Tokens:
    """The columns of a conversation that ends with a question, up to where the assistant starts to write.

    Arguments and errors as in `tokenize`; all labels are IGNORE.
    """
    rules = _format(format)
    segments = [*_segments(rules, _in_order(turns, answered=False)), (rules.opening, False)]
    columns = _columns(segments, tokenizer, format, image_tokens, regions, counts, wrap_images)
    return dataclasses.replace(columns, labels=np.full_like(columns.labels, IGNORE))


def prompt_text(turns: Sequence[Turn], format: str) -> str:
    """The prompt as one string, with an open assistant turn if the last turn is a question."""
    rules = _format(format)
    answered = turns[-1][0] == "gpt"
    segments = _segments(rules, _in_order(turns, answered=answered))
    return "".join(text for text, _ in segments) + ("" if answered else rules.opening)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"unknown conversation format {name!r}, there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _in_order(turns: Sequence[Turn], *, answered: bool) -> Sequence[Turn]:
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    roles = [role for role, _ in turns]
    wanted = ["human", "gpt"] * (len(turns) // 2) + ([] if answered else ["human"])
    if roles != wanted or not turns:
        raise DataError(
            f"the turns are {', '.join(roles) or 'empty'}; human and gpt have to alternate and the last "
            f"is {'an answer' if answered else 'a question'}",
            field="conversations",
            remedy="repair the record",
        )
    return turns


def _segments(rules: Format, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """The prompt in pieces of text, each with whether it is trained."""
    segments = [(rules.system, False)]
    for role, text in turns:
        if role == "human":
            segments.append((rules.human[0] + text + rules.human[1], False))
        else:
            segments.append((rules.opening, False))
            segments.append((rules.answer[0] + text + rules.answer[1] if text else "", True))
    return segments


def _columns(segments, tokenizer, format, image_tokens, regions, counts, wrap_images) -> Tokens:
    ids = tokenizer.ids
    if _format(format).stop:
        stop_id(tokenizer, format)
    text = "".join(piece for piece, _ in segments)
    trained = np.concatenate([np.full(len(piece), train) for piece, train in segments])
    pieces = _pieces(text, tokenizer, _format(format).split_images)
    found = [token_id for token_id, _ in pieces]
    for name, mark, wanted in (("image", ids.image, len(image_tokens)), ("region", ids.region, regions)):
        if found.count(mark) != wanted:
            raise DataError(
                f"the text has {found.count(mark)} {SPECIAL_TOKENS[name]} for {wanted} {name}s",
                field="conversations",
                remedy=f"write {SPECIAL_TOKENS[name]} once for each {name}",
            )
    if ids.patch in found:
        raise DataError(f"the text holds {SPECIAL_TOKENS['patch']}", remedy="write <image> instead")

    # One row a column: id, label, source, index.
    rows = [(ids.bos, IGNORE, TEXT, 0)]
    pictures, image_index, region_index = iter(image_tokens), 0, 0
    for token_id, at in pieces:
        if token_id == ids.image:
            n = next(pictures)
            picture = [(ids.patch, IGNORE, IMAGE, image_index + k) for k in range(n)]
            if wrap_images:
                start, end = ((i, IGNORE, TEXT, 0) for i in (ids.image_start, ids.image_end))
                picture = [start, *picture, end]
            rows += picture
            image_index += n
        elif token_id == ids.region:
            rows.append((token_id, token_id if trained[at] else IGNORE, REGION, region_index))
            region_index += 1
        else:
            rows.append((token_id, token_id if trained[at] else IGNORE, TEXT, 0))
    columns = np.array(rows, np.int32).T
    links = _mark_links(columns, tokenizer, counts or QueryCounts())
    return Tokens(columns[0], columns[1], columns[2], columns[3], links)


def _pieces(text: str, tokenizer: Tokenizer, split_images: bool) -> list[tuple[int, int]]:
    """Ids with the index of their last character in `text`; pictures are one `<image>` id each."""
    if not split_images:
        return tokenizer.pieces(text)
    pieces, begin = [], 0
    for number, part in enumerate(text.split(IMAGE_MARK)):
        if number:
            pieces.append((tokenizer.ids.image, begin - 1))
        pieces += [(token_id, begin + at) for token_id, at in tokenizer.pieces(part)]
        begin += len(part) + len(IMAGE_MARK)
    return pieces


def _query_tokens(kind: LinkKind, counts: QueryCounts) -> list[str]:
    n = counts.of(kind.bank)
    if kind.bank in GENERATION_BANKS:
        return [EMB_TOKENS[0]] * n
    if n > len(EMB_TOKENS):
        raise ValueError(f"a perception link has at most {len(EMB_TOKENS)} queries, not {n}")
    return list(EMB_TOKENS[:n])


def _mark_links(columns: Int[np.ndarray, "4 L"], tokenizer: Tokenizer, counts) -> list[LinkAt]:
    """Turns the query columns of every link from TEXT to LINK, in place."""
    ids, _, source, index = columns
    first, last = tokenizer.ids.emb, tokenizer.ids.emb + len(EMB_TOKENS) - 1
    links = []
    kinds = {getattr(tokenizer.ids, kind.token): kind for kind in LINKS}
    for at in np.flatnonzero(np.isin(ids, list(kinds))):
        kind = kinds[int(ids[at])]
        wanted = [tokenizer.lookup(token) for token in _query_tokens(kind, counts)]
        span = slice(at + 1, at + 1 + len(wanted))
        if ids[span].tolist() != wanted:
            raise DataError(
                f"{SPECIAL_TOKENS[kind.token]} is not followed by its {len(wanted)} query tokens",
                field="conversations",
                remedy="write links with data_pipelines.conversation.link and the model's query counts",
            )
        source[span], index[span] = LINK, np.arange(len(wanted))
        links.append(LinkAt(kind.token, int(at) + 1))
    stray = (ids >= first) & (ids <= last) & (source != LINK)
    if stray.any():
        raise DataError(
            f"{int(stray.sum())} query tokens ([EMB]...) stand outside a link",
            field="conversations",
            remedy="write links with data_pipelines.conversation.link and the model's query counts",
        )
    return links


def _cut(columns: Tokens, max_length: int) -> Tokens:
    end = max_length
    if columns.source[end] == LINK:
        # Go back to the routing token: half a link would give the decoder queries without states.
        end = max(link.start for link in columns.links if link.start <= end) - 1
    lost = columns.source[end:]
    if np.isin(lost, [IMAGE, REGION]).any() or (columns.labels[:end] == IGNORE).all():
        raise CapacityError(
            f"{len(columns.ids)} columns do not fit into {max_length}, and a cut would lose a picture, a "
            "region or the whole answer",
            remedy="raise the length or use fewer tiles",
        )
    links = [at for at in columns.links if at.start < end]
    return Tokens(
        columns.ids[:end],
        columns.labels[:end],
        columns.source[:end],
        columns.index[:end],
        links,
        len(columns.links) - len(links),
    )
