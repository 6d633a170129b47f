# SPDX-License-Identifier: Apache-2.0
"""The whole model: forward, loss and gradients of every `full_*` golden file.

The official decoders are replaced in the goldens by a random projection R of the link states; here a probe
decoder computes the same loss, so that routing, gathering and gradients run through `VisionLLMv2.losses`.
Rows of padding are left out: they mean nothing and the official mask lets them look at other columns.
"""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import Case, goldens
from tests.parity.model import build, config_for, inputs_for, link_rows
from vllm2_jax import links
from vllm2_jax.batch import TaskRows, flatten_groups
from vllm2_jax.convert import visionllmv2
from vllm2_jax.model import VisionLLMv2

NAMES = (
    "full_pad_det",
    "full_pad_largeregion",
    "full_anyres_grd",
    "full_t2i_train",
    "full_edit_train",
    "full_incontext",
    "full_pose",
    "full_mismatch",
    "full_pixelshuffle",
    "full_intern",
)

# Prefix in the golden file -> what it calls the states that the decoder got.
STATES = {"gdino": "text_query", "sd": "queries", "ip2p": "queries"}


def cases(folder: pathlib.Path, names: Sequence[str] = NAMES) -> Iterator[Case]:
    for name in names:
        data = goldens.arrays(folder, name)
        for label, got, want in _one(folder, name, data):
            yield f"{name} {label}", got, want


def _one(folder: pathlib.Path, name: str, data: dict[str, np.ndarray]) -> Iterator[Case]:
    config, tensors = config_for(folder, name)
    model = build(config, tensors)
    ids = goldens.config(folder)["token_ids"]
    inputs = jax.tree.map(jnp.asarray, inputs_for(data, config, ids))
    valid = data["in/attention_mask"].astype(bool)

    images, regions = jax.jit(VisionLLMv2.see)(model, inputs)
    yield "image tokens", np.asarray(images).reshape(data["image_embeds"].shape), data["image_embeds"]
    if inputs.masks.shape[1]:
        if "sample_points_rc" in data:
            regions = _sampled_regions(model, inputs, data)
        yield "region vectors", np.asarray(regions)[0], data["region_embeds"]

    text = model.llm.embed_tokens(flatten_groups(inputs.tokens))[None]
    embedded = links.embed(inputs, text, images, regions, model.queries.table(text.dtype))
    if "llm_inputs_embeds" in data:
        yield "language model input", np.asarray(embedded)[0][valid], data["llm_inputs_embeds"][valid]

    @jax.jit
    def read(llm, embedded):
        positions, segments = flatten_groups(inputs.positions), flatten_groups(inputs.segments)
        hidden = llm(flatten_groups(embedded), positions=positions, segments=segments)
        return hidden, llm.logits(hidden)

    hidden, logits = read(model.llm, embedded)
    logits = np.asarray(logits)
    yield "hidden states", np.asarray(hidden)[valid], data["last_hidden_state"][valid]
    tail = data.get("logits_tail", data.get("logits"))
    keep = valid[:, -tail.shape[1] :]
    yield "logits", logits[:, -tail.shape[1] :][keep], tail[keep]

    labels = links.mask_labels(jnp.asarray(data["labels"])[None], inputs)
    yield "labels after masking", np.asarray(labels)[0], data["labels_after"]
    if name == "full_mismatch" or "sample_points_rc" in data:
        return  # the official loss is multiplied by 0; or the region pooling was drawn at random

    rows, projection = link_rows(data, inputs, ids, config)
    targets = {} if rows is None else {"probe": projection}
    only = TaskRows(inputs, data["labels"][None], *(rows or _no_links(inputs)), targets)
    batch = jax.tree.map(jnp.asarray, {"only": only})
    if rows is not None:
        states = np.asarray(links.read(hidden.reshape(embedded.shape), batch["only"]).states)
        yield from _states(data, states[0], np.asarray(rows[1])[0])
    graph, params = nnx.split(model)

    def total(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        terms, _ = nnx.merge(graph, params).losses(batch)
        means = {term: value / jnp.maximum(weight, 1) for term, (value, weight) in terms.items()}
        return sum(means.values()), means["lm"]

    (loss, lm), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    yield "language model loss", np.asarray(lm), data["lm_loss"]
    if rows is not None:
        yield "total loss", np.asarray(loss), data["loss"]
        named = visionllmv2.export(gradient, config)
        for key in data:
            if key.startswith("grad/") and key[5:] in named:
                yield key, named[key[5:]], data[key]


def _states(data: dict[str, np.ndarray], got: np.ndarray, valid: np.ndarray) -> Iterator[Case]:
    """Link states that reached the decoder; [rows, links, queries, width]."""
    for prefix, field in STATES.items():
        if f"{prefix}.{field}" in data:
            want = data[f"{prefix}.{field}"]
            shaped = got if want.ndim == 4 else got[:, 0]
            yield (
                f"{prefix} link states",
                shaped
                * valid[..., None, None].reshape((*valid.shape, 1, 1) if want.ndim == 4 else (-1, 1, 1)),
                want,
            )
    if "unipose.obj_querys" in data:
        half = data["unipose.obj_querys"].shape[1]
        for field, part in (("obj", slice(0, half)), ("kpt", slice(half, None))):
            keep = data[f"unipose.{field}_query_masks"].astype(bool)
            yield f"unipose {field} states", got[:, part][keep], data[f"unipose.{field}_querys"][keep]


def _sampled_regions(model, inputs, data) -> jax.Array:
    """Region vectors from the pixels that the official code drew (recorded per level)."""
    points, counts = data["sample_points_rc"], data["sample_counts"]
    drawn = np.zeros((*points.shape[:2], *inputs.masks.shape[2:]), np.float32)
    for level, region in np.ndindex(points.shape[:2]):
        r, c = points[level, region, : counts[level, region]].T.astype(int)
        drawn[level, region, r, c] = 1
    tile = np.asarray(inputs.mask_tile)[0]
    pixels = jnp.asarray(inputs.tiles)[0]
    states = model.vision.hidden_states(pixels, (-3, -2, -1))
    vectors = model.regions(
        pixels[tile], inputs.masks[0], tuple(s[tile, 1:] for s in states), sampled_masks=jnp.asarray(drawn)
    )
    return vectors[None]


def _no_links(inputs) -> tuple[np.ndarray, np.ndarray]:
    groups, rows = inputs.tokens.shape[:2]
    return np.zeros((groups, rows, 0, 1), np.int32), np.zeros((groups, rows, 0), bool)
