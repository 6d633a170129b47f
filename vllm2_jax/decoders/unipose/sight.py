# SPDX-License-Identifier: Apache-2.0
"""Who looks at whom among the queries.

Denoising queries stand in front and look at their own group and at all matching queries; matching queries
never look at them. Among the matching ones attention stays inside pieces of equal length: all queries are one
piece at first, later each instance with its keypoints is one. Cutting them is what makes keypoints cheap: 50
pieces of 69 instead of 3,450 queries that look at each other through a mask.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from vllm2_jax.nn.multihead import MultiHeadAttention


@struct.dataclass
class Sight:
    """Who looks at whom.

    Attributes:
      noise: where each of D denoising queries may look among all T queries; None without them.
      inside: where each query of a piece may look in it, one mask a piece of each row; None is everywhere.
      pieces: how many equal pieces the matching queries of a row are cut into.
    """

    noise: Bool[Array, "B D T"] | None
    inside: Bool[Array, "N M M"] | None
    pieces: int = struct.field(pytree_node=False, default=1)

    @property
    def slots(self) -> int:
        """Denoising queries."""
        return 0 if self.noise is None else self.noise.shape[1]

    def __call__(
        self, attention: MultiHeadAttention, query: Float[Array, "B T W"], x: Float[Array, "B T W"]
    ) -> Float[Array, "B T W"]:
        """What every query finds; `query` has positions added to `x`."""

        def cut(x: Array) -> Array:
            return x[:, self.slots :].reshape(len(x) * self.pieces, -1, x.shape[-1])

        found = attention(cut(query), cut(query), cut(x), self.inside).reshape(len(x), -1, x.shape[-1])
        if self.noise is None:
            return found
        of_noise = attention(query[:, : self.slots], query, x, self.noise)
        return jnp.concatenate([of_noise, found], axis=1)


def of_figures(before: Sight, keypoints: Bool[Array, "B P"], instances: int, *, faithful: bool) -> Sight:
    """Who looks at whom once the queries are instances, each with P keypoints.

    An instance's box and the keypoints asked for see each other, free places see free places. Denoising
    queries see all that is no free place.

    Args:
      before: in the box layers.
      keypoints: which of the P a row asks for.
      faithful: denoising queries see free places, too, and without any the rest sees what it should not
        (`official`).
    """
    used = jnp.concatenate([jnp.ones((len(keypoints), 1), bool), keypoints], axis=1)
    if before.noise is None and faithful:
        return Sight(None, official(used, instances))
    inside = jnp.repeat(used[:, :, None] == used[:, None], instances, axis=0)
    if before.noise is None:
        return Sight(None, inside, instances)
    others = jnp.tile(used, (1, instances))[:, None] | faithful
    others = jnp.broadcast_to(others, (len(used), before.slots, others.shape[-1]))
    own = before.noise[:, :, : before.slots]
    return Sight(jnp.concatenate([own, others], axis=-1), inside, instances)


def official(used: Bool[Array, "B M"], instances: int) -> Bool[Array, "B T T"]:
    """Who sees whom among all M queries of all instances outside of training, in the official code.

    It cuts the queries into pieces one query too short (68 instead of 69, `modeling_unipose.py` 891), so
    instances see parts of their neighbours, the more the later they come, and the last see all.
    """
    size = used.shape[1]
    short = size - 1
    at = jnp.arange(instances * size)
    row, column, end = at[:, None], at[None], instances * short
    first = row // short * short
    # What follows the last piece was never cut off, and the rows there see all.
    last = first + short >= end
    strangers = (row >= end) | ((column >= first) & ((column < first + short) | last))
    tiled = jnp.tile(used, (1, instances))
    own = row // size == column // size
    return jnp.where(own, tiled[:, :, None] == tiled[:, None], strangers)
