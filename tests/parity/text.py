# SPDX-License-Identifier: Apache-2.0
"""Golden comparisons of tokenisation: text.json and tiny_tokenizer.model.

Ids have to be equal in every case. Labels have to be equal unless the official code gave the sample up: it
prints a "tokenization mismatch" and ignores all labels when the lengths of re-tokenised fragments do not add
up. We mask such samples exactly; `given_up` tells which they are, tests/data_pipelines/test_conversation.py
says what their labels are instead.
"""

import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from data_pipelines import conversation
from data_pipelines.datasets.llava import keep_first_images
from data_pipelines.errors import DataError
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from vllm2_jax.tokens import QueryCounts


def given_up(case: dict) -> bool:
    """Whether the official code ignored all labels of this case because its own sums disagreed."""
    return "tokenization mismatch" in case["printed"]


def tokenizers(goldens: pathlib.Path) -> dict[str, Tokenizer]:
    """The tokenizers of the file: "True" and "False" (legacy), and "internlm2" with its two chat tokens."""
    model = goldens / "tiny_tokenizer.model"
    made = {str(legacy): load_tokenizer(model, legacy=legacy) for legacy in (True, False)}
    ids = json.loads((goldens / "text.json").read_text())["added_tokens"]["internlm2"]["ids"]
    chat = {"<|im_start|>": ids["im_start"], "<|im_end|>": ids["im_end"]}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, pathlib.Path(folder, "tokenizer.model"))
        pathlib.Path(folder, "added_tokens.json").write_text(json.dumps(chat))
        made["internlm2"] = load_tokenizer(folder)
    return made


def run(case: dict, made: dict[str, Tokenizer]) -> conversation.Tokens:
    """Our columns of a golden case."""
    tokenizer = made["internlm2" if case["version"] == "internlm2_chat" else str(case["legacy"])]
    turns = [(turn["from"], turn["value"]) for turn in case["conversations"]]
    turns = keep_first_images(turns)
    n = sum(text.count("<image>") for _, text in turns)
    lengths = case["image_token_len"]
    lengths = lengths if isinstance(lengths, list) else [lengths] * n
    written = " ".join(text for _, text in turns)
    return conversation.tokenize(
        turns,
        tokenizer,
        format=case["version"],
        image_tokens=lengths,
        regions=sum(text.count("<region>") for _, text in turns),
        counts=QueryCounts(_queries("DET|GRD|SEG|POSE", written), _queries("GEN|EDIT", written)),
        # The official limit counts a picture as one column.
        max_length=case["model_max_length"] + sum(lengths) - n,
        wrap_images=case["use_im_start_end"],
    )


def _queries(tokens: str, text: str) -> int:
    """Query tokens behind the first link of these kinds; 1 if there is none."""
    found = re.search(rf"\[(?:{tokens})\]((?:\[EMB\d?\])+)", text)
    return found.group(1).count("[EMB") if found else 1


def cases(goldens: pathlib.Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, ours, official): ids and labels of every case, ids of the added tokens, prompts."""
    content = json.loads((goldens / "text.json").read_text())
    made = tokenizers(goldens)
    # Our fields stand in the order of the official dictionary, whose names are others.
    for name, tokenizer in made.items():
        official = dict(content["added_tokens"][name]["ids"])
        ours = vars(tokenizer.ids) | {k: tokenizer.lookup(f"<|{k}|>") for k in ("im_start", "im_end")}
        pairs = [(ours.pop("padding"), official.pop("unk"))]
        for key in {"bos", "eos", "im_start", "im_end"} & set(official):
            pairs.append((ours.pop(key), official.pop(key)))
        got = [token_id for token_id in ours.values() if token_id is not None]
        pairs += zip(got, official.values(), strict=True)
        yield f"added tokens {name}", *np.array(pairs).T
    for version, official in (("v1", "vicuna_v1"), ("internlm2_chat", "internlm2_chat")):
        turns = [("human", "Q1"), ("gpt", "A1"), ("human", "Q2")]
        got, want = conversation.prompt_text(turns, version), content["prompts"][official]
        yield f"prompt {version}", np.array(list(got.encode())), np.array(list(want.encode()))
    for number, case in enumerate(content["cases"]):
        name = f"{number} {case['name']} {case['version']} legacy={case['legacy']}"
        if case["error"] is not None:
            try:
                run(case, made)
                raised = False
            except DataError:
                raised = True
            yield f"{name} raises", np.array([raised]), np.array([True])
            continue
        got = run(case, made)
        yield f"{name} ids", got.ids, np.array(case["input_ids"])
        if not given_up(case):
            yield f"{name} labels", got.labels, np.array(case["labels"])
