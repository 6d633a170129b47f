# SPDX-License-Identifier: Apache-2.0
"""Token ids of captions, by CLIP's tokenizer with the golden set's vocabulary."""

import json
import pathlib
import tempfile
from collections.abc import Iterator

from data_pipelines.caption_tokenizer import CaptionTokenizer, load_caption_tokenizer
from tests.parity import Case, goldens
from tests.parity.diffusion import info


def tokenizer(folder: pathlib.Path) -> CaptionTokenizer:
    """The golden tokenizer, from the files that CLIP's would have."""
    found = info(folder)
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / "vocab.json").write_text(json.dumps(found["vocab"]))
        merges = "\n".join(["#version: 0.2", *found["merges"]])
        (pathlib.Path(place) / "merges.txt").write_text(merges + "\n")
        return load_caption_tokenizer(place)


def cases(folder: pathlib.Path) -> Iterator[Case]:
    tokenize = tokenizer(folder)
    for file, ids in (
        ("text", "input_ids"),
        ("train_sd_cfg", "caption_ids"),
        ("train_sd_nocfg", "caption_ids"),
        ("train_ip2p_cfg", "caption_ids"),
        ("train_ip2p_nocfg", "caption_ids"),
    ):
        if not (folder / f"{file}.npz").exists():
            continue
        data = goldens.arrays(folder, file)
        for caption, want in zip(data["captions"], data[ids], strict=True):
            yield f"{file} {str(caption)!r}", tokenize(str(caption), len(want)), want
