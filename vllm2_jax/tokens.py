# SPDX-License-Identifier: Apache-2.0
"""Special tokens of VisionLLM v2: their strings, their order, and the ids a tokenizer gave them.

The 26 strings are appended to a tokenizer in this order (official file `constant.py`). Ids always come
from the tokenizer by string: released checkpoints differ in their vocabulary size.
"""

import dataclasses
from collections.abc import Callable

# Field name of `SpecialIds` -> string in the text. The order is the order of insertion.
SPECIAL_TOKENS: dict[str, str] = {
    "pad": "[PAD]",  # an unused row: padding uses <unk>, see `SpecialIds.padding`
    "image": "<image>",  # stands for one picture in a conversation
    "patch": "<im_patch>",  # one column of the language model filled by an image token
    "region": "<region>",  # one column filled by a region vector
    "image_start": "<img>",
    "image_end": "</img>",
    "region_start": "<reg>",
    "region_end": "</reg>",
    "det_start": "<det>",
    "det_end": "</det>",
    "grd_start": "<grd>",
    "grd_end": "</grd>",
    "det": "[DET]",
    "grd": "[GRD]",
    "seg": "[SEG]",
    "pose": "[POSE]",
    "gen": "[GEN]",
    "edit": "[EDIT]",
    "emb": "[EMB]",  # first query column of a link; the spare ones follow with consecutive ids
    "emb2": "[EMB2]",
    "emb3": "[EMB3]",
    "emb4": "[EMB4]",
    "emb5": "[EMB5]",
    "emb6": "[EMB6]",
    "emb7": "[EMB7]",
    "emb8": "[EMB8]",
}

EMB_TOKENS = tuple(token for token in SPECIAL_TOKENS.values() if token.startswith("[EMB"))


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids one tokenizer gave to the special tokens.

    `bos`, `eos` and `padding` belong to the base vocabulary; `padding` is the id of `<unk>`, as in the
    official code (train.py:351). The other fields are the keys of `SPECIAL_TOKENS`.
    """

    bos: int
    eos: int
    padding: int
    pad: int
    image: int
    patch: int
    region: int
    image_start: int
    image_end: int
    region_start: int
    region_end: int
    det_start: int
    det_end: int
    grd_start: int
    grd_end: int
    det: int
    grd: int
    seg: int
    pose: int
    gen: int
    edit: int
    emb: int
    emb2: int
    emb3: int
    emb4: int
    emb5: int
    emb6: int
    emb7: int
    emb8: int

    def __post_init__(self):
        embs = [getattr(self, f"emb{i}" if i > 1 else "emb") for i in range(1, len(EMB_TOKENS) + 1)]
        if embs != list(range(self.emb, self.emb + len(embs))):
            raise ValueError(
                f"the tokens {', '.join(EMB_TOKENS)} need consecutive ids, the tokenizer has {embs}; "
                "add the special tokens in the order of vllm2_jax.tokens.SPECIAL_TOKENS"
            )

    @classmethod
    def find(cls, lookup: Callable[[str], int | None], *, bos: int, eos: int, padding: int) -> "SpecialIds":
        """Reads every special token's id with `lookup` (string -> id, or None if unknown).

        Raises:
          ValueError: lists all strings the tokenizer does not know.
        """
        looked_up = {name: lookup(token) for name, token in SPECIAL_TOKENS.items()}
        found = {name: token_id for name, token_id in looked_up.items() if token_id is not None}
        missing = [token for name, token in SPECIAL_TOKENS.items() if name not in found]
        if missing:
            raise ValueError(
                f"the tokenizer does not know the special tokens {', '.join(missing)}; "
                "load it with data_pipelines.tokenizer.load_tokenizer, which adds them"
            )
        return cls(bos=bos, eos=eos, padding=padding, **found)


@dataclasses.dataclass(frozen=True)
class Link:
    """One kind of super link: routing token (a field of `SpecialIds`), bank of its queries, decoder."""

    token: str
    bank: str
    decoder: str


LINKS: tuple[Link, ...] = (
    Link("det", bank="det", decoder="grounding_dino"),
    Link("grd", bank="det", decoder="grounding_dino"),
    Link("seg", bank="det", decoder="grounding_dino"),
    Link("pose", bank="pose", decoder="unipose"),
    Link("gen", bank="gen", decoder="stable_diffusion"),
    Link("edit", bank="edit", decoder="instruct_pix2pix"),
)

# Banks of learned queries, in the order in which their rows stand in the table of all queries.
PERCEPTION_BANKS = ("det", "pose")
GENERATION_BANKS = ("gen", "edit")
BANKS = PERCEPTION_BANKS + GENERATION_BANKS


@dataclasses.dataclass(frozen=True)
class QueryCounts:
    """Queries of one link: 4 for perception and 64 for generation in the released models."""

    perception: int = 4
    generation: int = 64

    def of(self, bank: str) -> int:
        """Queries that a link of this bank has."""
        return self.perception if bank in PERCEPTION_BANKS else self.generation

    def offset(self, bank: str) -> int:
        """Row of the bank's first query in the table of all queries."""
        return sum(self.of(earlier) for earlier in BANKS[: BANKS.index(bank)])

    @property
    def total(self) -> int:
        """Rows of the table of all queries."""
        return sum(self.of(bank) for bank in BANKS)
