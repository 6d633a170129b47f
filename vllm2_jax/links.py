# SPDX-License-Identifier: Apache-2.0
"""Super links: learned queries on their way into the language model, and its states on their way out.

A link is a routing token (`[DET]`, `[GEN]`, ...; the table is `vllm2_jax.tokens.LINKS`) followed by query
columns. Going in, the columns are filled from a bank of learned embeddings: one select over four sources.
Coming out, a decoder reads the hidden states at those columns: one `take_along_axis`. Both work on any
number of links a row, decided per column. Source: paper section 3.2, official `modeling_visionllmv2.py`
426-522.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vllm2_jax.batch import (
    IGNORE,
    IMAGE,
    LINK,
    REGION,
    Inputs,
    Links,
    TaskRows,
)
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import param
from vllm2_jax.nn.lookup import lookup
from vllm2_jax.tokens import BANKS, QueryCounts


class QueryBanks(nnx.Module):
    """The learned queries of all links; `[DET]`, `[GRD]` and `[SEG]` share one bank."""

    def __init__(self, counts: QueryCounts, width: int, *, std: float = 1.0, rngs: nnx.Rngs):
        """Draws queries of this size; 1 is PyTorch's for an embedding, which the official code keeps."""
        init = nnx.initializers.normal(std)
        for bank in BANKS:
            shape = (counts.of(bank), width)
            setattr(self, bank, param(init, rngs, shape, ("queries", "embed")))

    def table(self, dtype: DTypeLike) -> Float[Array, "Q D"]:
        """All queries, bank after bank in the order of `BANKS`."""
        return jnp.concatenate([getattr(self, bank)[...] for bank in BANKS]).astype(dtype)


def embed(
    inputs: Inputs,
    text: Float[Array, "G R L D"],
    images: Float[Array, "G I D"],
    regions: Float[Array, "G N D"],
    queries: Float[Array, "Q D"],
) -> Float[Array, "G R L D"]:
    """Fills every column from its source: text, image tokens, regions or link queries.

    Args:
      inputs: the maps `source` and `index`.
      text: token embeddings.
      images: the I image tokens of each group.
      regions: the N region vectors of each group.
      queries: the table of all queries, in the precision that their gradients are added up in.
    """
    # Said here, or rows are picked split by width, as their tables are, and then exchanged between devices.
    x, queries = constrain(text, "batch", None, None, None), constrain(queries, None, None)
    for kind, rows in ((IMAGE, images), (REGION, regions)):
        if rows.shape[1]:
            x = jnp.where((inputs.source == kind)[..., None], _in_group(rows, inputs, kind), x)
    query = lookup(queries, jnp.where(inputs.source == LINK, inputs.index, 0), x.dtype)
    return jnp.where((inputs.source == LINK)[..., None], query, x)


def _in_group(rows: Float[Array, "G I D"], inputs: Inputs, kind: int) -> Float[Array, "G R L D"]:
    """Row `index` of the group's own rows, for every column of this kind (row 0 for the others)."""
    groups, _, length = inputs.index.shape
    index = jnp.where(inputs.source == kind, inputs.index, 0).reshape(groups, -1, 1)
    picked = jnp.take_along_axis(constrain(rows, "batch", None, None), index, axis=1)
    picked = constrain(picked, "batch", None, None)
    return picked.reshape(groups, -1, length, rows.shape[-1])


def read(hidden: Float[Array, "G r L D"], rows: TaskRows) -> Links:
    """The states a decoder reads, from the hidden states of one task's rows; leading axes G, r."""
    groups, count, links, queries = rows.link_position.shape
    index = rows.link_position.reshape(groups, count, links * queries, 1)
    states = jnp.take_along_axis(hidden, index, axis=2)
    return Links(states.reshape(groups, count, links, queries, hidden.shape[-1]), rows.link_valid)


def mask_labels(labels: Int[Array, "G r L"], inputs: Inputs, *, names: bool = False) -> Int[Array, "G r L"]:
    """Labels with the query columns ignored: nothing is predicted inside a link.

    The routing token stays a target, so the model learns when to call a decoder; the token after a link is
    predicted from its last query. Image columns are ignored by the collator already.

    Args:
      labels: a token each, or `IGNORE`.
      inputs: of the same rows.
      names: all queries but the last learn to spell what is in front of the link, its name, backwards: the
        first says its last token, the second the one before. A language model from nothing gives all links
        nearly one state, and a decoder from nothing does not ask it for more; with this they differ from
        early on. Not official.
    """
    inside = inputs.source == LINK
    if not names:
        return jnp.where(inside, IGNORE, labels)
    column = jnp.arange(labels.shape[-1])
    routing = jax.lax.cummax(jnp.where(inside, 0, column), axis=labels.ndim - 1)
    # A label is read from the column before it, the first query's from the routing token.
    query = column - routing - 2
    name = jnp.take_along_axis(inputs.tokens, jnp.maximum(routing - 1 - query, 0), axis=-1)
    answered = jnp.take_along_axis(labels, routing, axis=-1) != IGNORE  # links of a question are only read
    said = answered & (query >= 0)
    return jnp.where(inside, jnp.where(said, name, IGNORE), labels)
