# SPDX-License-Identifier: Apache-2.0
"""The loss terms of the grounding decoder, each a (sum, weight) pair whose coefficient is part of the sum.

A term is named after what it measures (`class`, `box`, `giou`, `mask`, `dice`) and where: no suffix is the
last layer, `_0` to `_n` the earlier ones, `_enc` the cells that queries start from, `_dn` and `_dn_0` to
`_dn_n` the denoising queries. The weight is the number of objects, or of objects with a mask. Source:
official `GroundingDinoLoss`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vllm2_jax.batch import Weighted
from vllm2_jax.decoders.denoising import Layout
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig
from vllm2_jax.decoders.grounding_dino.costs import costs
from vllm2_jax.decoders.grounding_dino.outputs import Outputs, Predictions, mask_logits
from vllm2_jax.decoders.grounding_dino.targets import Truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, paired_giou
from vllm2_jax.ops.losses import dice, sigmoid_bce, sigmoid_focal
from vllm2_jax.ops.masks import Points, at_points, draw_points
from vllm2_jax.ops.matching import match

MASK_TERMS = ("mask", "dice")

Sums = dict[str, Float[Array, " S"]]  # term -> its sum over the batch, for each set of predictions


@struct.dataclass
class Pairs:
    """Which query has to become which object, P pairs a row.

    Attributes:
      query: of the pair.
      truth: its object.
      weight: 0 where the pair is none.
    """

    query: Int[Array, "B P"]
    truth: Truth
    weight: Float[Array, "B P"]


@struct.dataclass
class MaskPoints:
    """Where masks are compared, for each set of predictions on the first axis.

    Attributes:
      matched: for the cells that queries start from and the layers after them, and the objects of a row.
      denoising: for the layers, and the pairs of `denoising_pairs`.
    """

    matched: Points
    denoising: Points


def draw(key: jax.Array, rows: int, layers: int, config: CriterionConfig) -> MaskPoints:
    """Fresh points; the masks of a row and set share them, which reads them fast. Official: each its own."""
    first, second = jax.random.split(key)
    shares = {"oversample": config.oversample, "importance": config.importance}
    return MaskPoints(
        draw_points(first, (1 + layers, rows, 1), config.points, **shares),
        draw_points(second, (layers, rows, 1), config.points, **shares),
    )


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The losses of one batch.

    Attributes:
      config: coefficients.
      truth: objects.
    """

    config: CriterionConfig
    truth: Truth

    def __call__(
        self, outputs: Outputs, points: MaskPoints, layout: Layout | None = None
    ) -> dict[str, Weighted]:
        """All terms; those of denoising if there are such queries, of which `layout` says what they are."""
        layers = len(outputs.layers.logits)
        of_layers = ["" if i == layers - 1 else f"_{i}" for i in range(layers)]
        found = self.matched(outputs, points.matched)
        sums = {
            f"{term}{suffix}": value[i]
            for i, suffix in enumerate(["_enc", *of_layers])
            for term, value in found.items()
        }
        if outputs.denoising is not None and layout is not None:
            noisy = self.denoising(outputs.denoising, outputs.mask_features, points.denoising, layout)
            sums |= {
                f"{term}_dn{suffix}": value[i]
                for i, suffix in enumerate(of_layers)
                for term, value in noisy.items()
            }
        objects, masks = (
            valid.sum().astype(jnp.float32) for valid in (self.truth.valid, self.truth.mask_valid)
        )
        return {
            name: (value, masks if name.startswith(MASK_TERMS) else objects) for name, value in sums.items()
        }

    def matched(self, outputs: Outputs, points: Points) -> Sums:
        """Learned queries: where they start, and after every layer."""
        sets = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), outputs.encoder, outputs.layers)
        truth = self.truth

        def assign(found: Predictions) -> Int[Array, "B N"]:
            return match(costs(found.logits, found.boxes, truth, self.config), truth.valid)

        query = jax.vmap(assign)(sets)
        weight = truth.valid.astype(jnp.float32)
        everywhere = jnp.ones(sets.logits.shape[1:3])

        def one(_, xs):
            found, query, points = xs
            return None, self._terms(
                found, Pairs(query, truth, weight), everywhere, outputs.mask_features, points
            )

        return _over_sets(one, (sets, query, points))

    def denoising(
        self, sets: Predictions, mask_features: Float[Array, "B h w M"], points: Points, layout: Layout
    ) -> Sums:
        """Denoising queries: their objects are known, and a row's groups share the weight of one."""
        pairs = denoising_pairs(layout, self.truth)
        live = layout.live / layout.groups[:, None]

        def one(_, xs):
            found, points = xs
            return None, self._terms(found, pairs, live, mask_features, points)

        return _over_sets(one, (sets, points))

    def _terms(
        self,
        found: Predictions,
        pairs: Pairs,
        weight: Float[Array, "B Q"],
        mask_features: Float[Array, "B h w M"],
        points: Points,
    ) -> dict[str, Float[Array, ""]]:
        """All terms of one set; `weight` is that of queries in the class term, paired or not."""
        boxes, masks = _rows(found.boxes, pairs.query), _rows(found.masks, pairs.query)
        return {
            "class": self._class(found.logits, pairs, weight),
            **self._box(boxes, pairs),
            **self._mask(mask_logits(masks, mask_features), pairs, points),
        }

    def _class(
        self, logits: Float[Array, "B Q K"], pairs: Pairs, weight: Float[Array, "B Q"]
    ) -> Float[Array, ""]:
        """Queries in no pair are background. A class that a row has not is as unwanted as can be: 0."""
        queries, classes = logits.shape[1:]
        labels = jax.nn.one_hot(pairs.truth.labels, classes) * (pairs.weight > 0)[..., None]
        # A product, not a scatter: it is split over devices like the batch.
        wanted = jnp.einsum("bpq,bpk->bqk", jax.nn.one_hot(pairs.query, queries), labels)
        loss = sigmoid_focal(logits, wanted) * weight[..., None]
        return self.config.class_weight * loss.sum()

    def _box(self, boxes: Float[Array, "B P 4"], pairs: Pairs) -> dict[str, Float[Array, ""]]:
        wanted, weight = pairs.truth.boxes, pairs.weight
        overlap = paired_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
        return {
            "box": self.config.box_weight * (jnp.abs(boxes - wanted).sum(-1) * weight).sum(),
            "giou": self.config.giou_weight * ((1 - overlap) * weight).sum(),
        }

    def _mask(
        self, logits: Float[Array, "B P h w"], pairs: Pairs, points: Points
    ) -> dict[str, Float[Array, ""]]:
        found, wanted = at_points(logits, pairs.truth.masks, points, self.config.points)
        weight = pairs.weight * pairs.truth.mask_valid
        return {
            "mask": self.config.mask_weight * (sigmoid_bce(found, wanted).mean(-1) * weight).sum(),
            "dice": self.config.dice_weight * (dice(found, wanted) * weight).sum(),
        }


def denoising_pairs(layout: Layout, truth: Truth) -> Pairs:
    """The slots to be repaired and their objects: group after group, in each one object after the other.

    At most half the slots are such; places left over have weight 0.
    """
    slots = layout.matched.shape[1]
    query = jnp.argsort(~layout.matched, axis=1, stable=True)[:, : slots // 2]
    target = jnp.take_along_axis(layout.target, query, axis=1)
    share = jnp.take_along_axis(layout.matched, query, axis=1) / layout.groups[:, None]
    return Pairs(query, jax.tree.map(lambda x: _rows(x, target), truth), share)


def _over_sets(one, sets) -> Sums:
    """Terms of every set, one set after the other: the masks of all would not fit, so none is kept."""
    return jax.lax.scan(jax.checkpoint(one), None, sets)[1]


def _rows(x: Array, index: Int[Array, "B P"]) -> Array:
    """Row `index[b, p]` of `x[b]`."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
