# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the official layout with random values: of the released 7B, and of any other size.

    python -m tests.fake_checkpoint --to FOLDER            # all 4,740 tensors of the 7B, 19 GB
    python -m tests.fake_checkpoint --to FOLDER --small    # as many, with widths about a thirtieth, 75 MB

Names, shapes and dtypes of the 7B are a list that was taken from the official code, not from our tables. The
value of a tensor follows from its name and the seed, so that it need not be kept to be compared. The
tokenizer is the tiny one: the vocabulary has rows that no text needs, as padded ones of real checkpoints.
"""

import argparse
import json
import lzma
import math
import pathlib
import re
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from data_pipelines.train_tokenizer import TINY_TOKENIZER

# Shape and dtype by name; the dtype as safetensors calls it.
Listed = dict[str, tuple[tuple[int, ...], str]]

DTYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "I64": np.int64}
LIST = pathlib.Path(__file__).parent / "golden" / "weights" / "official_7b.tsv.xz"
CONFIG_7B: dict[str, Any] = {
    "vis_encoder_config": {
        **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"intermediate_size": 4096, "image_size": 336, "patch_size": 14},
    },
    "llm_config": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{
            "num_key_value_heads": 32,
            "intermediate_size": 11_008,
            "vocab_size": 32_026,
            "rms_norm_eps": 1e-5,
        },
    },
    "vl_bridge_type": "mlp2x_gelu",
    "vis_output_layer": -2,
    "num_embs": 4,
    "num_embs_gen": 64,
}
# The official config of the small one: heads and depths stay.
CONFIG_SMALL = {
    **CONFIG_7B,
    "vis_encoder_config": CONFIG_7B["vis_encoder_config"] | {"hidden_size": 32, "intermediate_size": 136},
    "llm_config": CONFIG_7B["llm_config"]
    | {"hidden_size": 128, "intermediate_size": 344, "vocab_size": 1068},
}
# What each length becomes in the small one, by the first pattern that the name has. Norms of groups need
# multiples of 32, the heads of CLIP's text encoder 64.
SMALLER: tuple[tuple[str, dict[int, int]], ...] = (
    (r"^vis_encoder", {1024: 32, 4096: 136}),
    (r"^vl_bridge", {1024: 32, 4096: 128}),
    (r"^llm|^emb_", {4096: 128, 11_008: 344, 32_026: 1068}),
    (r"^region_encoder", {64: 2, 256: 8, 1024: 32, 4096: 128}),
    (r"\.backbone\.", {width * 3 * 2**i: width * 3 * 2**i // 32 for width in (32, 96) for i in range(6)}),
    (r"input_proj|lateral_convs", {192: 6, 384: 12, 768: 24, 256: 32}),
    (r"^gdino|^unipose", {256: 32, 512: 64, 768: 96, 1024: 36, 2048: 72, 4096: 128, 900: 60}),
    (r"sd_unet", {320 * i: 32 * i for i in range(1, 33)} | {768: 64}),
    (r"sd_vae", {128: 32, 256: 64, 512: 128}),
    (r"sd_text_encoder", {768: 64, 3072: 256, 49_408: 1646}),
    (r"^sd|^ip2p", {768: 64, 2304: 192, 3072: 100, 4096: 128}),
)
# A head that several layers share is listed once for each of them, and again outside of the decoder.
SHARED = re.compile(r"^((?:gdino|unipose)\.)(?:\w+\.decoder\.)?((?:bbox|pose|pose_hw|mask)_embed)\.\d+\.")


def released_7b() -> Listed:
    """The 7B's tensors."""
    rows = (line.split("\t") for line in lzma.open(LIST, "rt"))
    return {name: (tuple(map(int, shape.split("x"))), dtype.strip()) for name, shape, dtype in rows}


def small() -> Listed:
    """The same tensors with smaller shapes."""
    return {name: (smaller(name, shape), dtype) for name, (shape, dtype) in released_7b().items()}


def smaller(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of this tensor in the small checkpoint."""
    lengths = next(lengths for pattern, lengths in SMALLER if re.search(pattern, name))
    kept = 1 if re.search(r"sampling_offsets|attention_weights", name) else 0  # heads, levels, points
    return shape[:kept] + tuple(lengths.get(size, size) for size in shape[kept:])


def one_name(name: str) -> str:
    """The name of the parameter that a name stands for, the same for all its names."""
    return SHARED.sub(r"\1\2.0.", name)


def value(name: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """The tensor of this name: sizes from 2^-15 to 2^-7, either sign; an index is what it must be."""
    if name.endswith("relative_position_index"):
        return window_index(math.isqrt(shape[0]))
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(one_name(name).encode())]))
    bits = rng.integers(0, 2**16, math.prod(shape), np.uint16) & 0x83FF | 0x3800
    return bits.view(ml_dtypes.bfloat16).reshape(shape).astype(DTYPES[dtype], copy=False)


def window_index(window: int) -> np.ndarray:
    """Swin's buffer, pair by pair as its paper defines it."""
    cells = [(row, column) for row in range(window) for column in range(window)]
    rows = [
        [(r - s + window - 1) * (2 * window - 1) + c - d + window - 1 for s, d in cells] for r, c in cells
    ]
    return np.array(rows, np.int64)


def write(
    folder: pathlib.Path,
    listed: Listed,
    config: Mapping[str, Any],
    *,
    shard_bytes: int = 10**9,
    seed: int = 0,
) -> None:
    """Shards, index, config.json and tokenizer; one shard is in memory at a time."""
    folder.mkdir(parents=True)
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, (shape, dtype) in listed.items():
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    where = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file({name: value(name, *listed[name], seed) for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY_TOKENIZER / "tokenizer.model", folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_checkpoint")
    parser.add_argument("--to", required=True, type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.small:
        write(args.to, small(), CONFIG_SMALL, seed=args.seed)
    else:
        write(args.to, released_7b(), CONFIG_7B, seed=args.seed)


if __name__ == "__main__":
    main()
