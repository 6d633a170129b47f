# SPDX-License-Identifier: Apache-2.0
"""Super links of the pose decoder: queries on their way in, states on their way out; frames of pictures."""

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from vllm2_jax import links
from vllm2_jax.batch import IMAGE, LINK, TEXT, Inputs, TaskRows
from vllm2_jax.tokens import QueryCounts
from vllm2_jax.vision.pixels import frame


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "superlink")
    ids = json.loads(str(data["ids_note"]))
    counts = QueryCounts(perception=ids["num_embs"], generation=1)
    places = [int(data[f"{kind}_query_masks"].shape[1]) for kind in ("obj", "kpt")]
    rows = jax.tree.map(jnp.asarray, _rows(data, ids, counts, places))
    width = data["token_table"].shape[1]
    table = np.zeros((counts.total, width), np.float32)
    for bank in ("det", "pose"):
        table[counts.offset(bank) : counts.offset(bank) + counts.perception] = data[f"emb_{bank}"]
    embedded = links.embed(
        rows.inputs,
        jnp.asarray(data["token_table"][data["input_ids"]])[None],
        jnp.asarray(data["vit_tokens"].reshape(1, -1, width)),
        jnp.zeros((1, 0, width)),
        jnp.asarray(table),
    )
    yield "way in", np.asarray(embedded)[0], data["inputs_embeds"]

    found = links.read(jnp.asarray(data["hidden_states"])[None], rows)
    for kind, part in (("obj", slice(0, places[0])), ("kpt", slice(places[0], None))):
        valid, want = np.asarray(found.valid)[0, :, part], data[f"{kind}_querys"]
        yield f"links of {kind}", valid, data[f"{kind}_query_masks"]
        states = np.where(valid[..., None, None], np.asarray(found.states)[0, :, part], 0)
        yield f"way out of {kind}", states[:, : want.shape[1]], want
        yield f"free places of {kind}", states[:, want.shape[1] :].any(), np.array(False)
    yield from _frame(data)


def _rows(
    data: dict[str, np.ndarray], ids: dict[str, int], counts: QueryCounts, places: list[int]
) -> TaskRows:
    """Both rows as one group; classes fill the first places of the links, keypoints the others."""
    tokens = data["input_ids"]
    source, index = np.full(tokens.shape, TEXT), np.zeros(tokens.shape, int)
    patches = tokens == ids["IMP"]
    source[patches], index[patches] = IMAGE, np.arange(patches.sum())
    position = np.zeros((len(tokens), sum(places), counts.perception), int)
    valid = np.zeros((len(tokens), sum(places)), bool)
    for token, bank, first in (("DET", "det", 0), ("POSE", "pose", places[0])):
        for b, row in enumerate(tokens):
            for place, column in enumerate(np.flatnonzero(row == ids[token]), start=first):
                columns = column + 1 + np.arange(counts.perception)
                source[b, columns], index[b, columns] = LINK, counts.offset(bank) + np.arange(len(columns))
                position[b, place], valid[b, place] = columns, True
    inputs = Inputs(
        tokens=tokens[None],
        source=source[None],
        index=index[None],
        positions=np.zeros_like(tokens)[None],
        segments=(tokens != ids["PAD"]).astype(int)[None],
        tiles=np.zeros((1, 0, 1, 1, 3), np.float32),
        masks=np.zeros((1, 0, 1, 1), np.uint8),
        mask_tile=np.zeros((1, 0), int),
    )
    return TaskRows(
        inputs, labels=tokens[None], link_position=position[None], link_valid=valid[None], targets={}
    )


def _frame(data: dict[str, np.ndarray]) -> Iterator[Case]:
    """Pictures of different sizes at the top left of one frame."""
    height, width = data["batched_shape"][-2:]
    pictures = [data["image0"].transpose(1, 2, 0), data["image1"].transpose(1, 2, 0)]
    image = np.ones((len(pictures), height, width, 3), np.float32)
    for b, picture in enumerate(pictures):
        image[b, : picture.shape[0], : picture.shape[1]] = picture
    sizes = jnp.array([picture.shape[:2] for picture in pictures])
    pixels, inside = frame(jnp.asarray(image), sizes, jnp.float32)
    yield "padding of pictures", ~np.asarray(inside), data["batched_mask"]
    for b, picture in enumerate(pictures):
        h, w = picture.shape[:2]
        yield f"picture {b}", np.asarray(pixels)[b, :h, :w], picture
    yield "pixels around pictures", np.asarray(pixels)[data["batched_mask"]].any(), np.array(False)
