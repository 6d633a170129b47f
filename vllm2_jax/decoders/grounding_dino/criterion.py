# SPDX-License-Identifier: Apache-2.0
"""The loss terms of the grounding decoder, each a (sum, weight) pair whose coefficient is part of the sum.

A term is named after what it measures (`class`, `box`, `giou`, `mask`, `dice`) and where: no suffix is the
last layer, `_0` to `_n` the earlier ones, `_enc` the cells that queries start from, `_dn` and `_dn_0` to
`_dn_n` the denoising queries. The weight is the number of objects, or of objects with a mask. Source:
official `GroundingDinoLoss`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from vllm2_jax.batch import Weighted
from vllm2_jax.decoders.denoising import Layout
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig
from vllm2_jax.decoders.grounding_dino.costs import costs
from vllm2_jax.decoders.grounding_dino.outputs import Outputs, Predictions
from vllm2_jax.decoders.grounding_dino.targets import Truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, paired_giou
from vllm2_jax.ops.losses import dice, sigmoid_bce, sigmoid_focal
from vllm2_jax.ops.masks import Points, Samples, at_points, draw_points
from vllm2_jax.ops.matching import match

MASK_TERMS = ("mask", "dice")
CHOSEN = "chosen points"  # of all that masks are compared by, what is stored for the backward pass

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
    """Where masks are compared; the first axis has length 1 or that of the sets of predictions.

    Attributes:
      matched: for the cells that queries start from and the layers after them, and the objects of a row.
      denoising: for the layers, and the pairs of `denoising_pairs`.
    """

    matched: Points
    denoising: Points


def draw(key: jax.Array, rows: int, config: CriterionConfig) -> MaskPoints:
    """Fresh points, which all masks and sets of a row share: what they read is read once.

    Official: each mask of each set its own.
    """
    shares = {"oversample": config.oversample, "importance": config.importance}
    first, second = (draw_points(key, (1, rows, 1), config.points, **shares) for key in jax.random.split(key))
    return MaskPoints(first, second)


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
        samples = _read(outputs.mask_features, truth, points)

        def one(found, query, number):
            pairs = Pairs(query, truth, weight)
            return self._terms(found, pairs, everywhere, _of_set(samples, number))

        return _over_sets(one, sets, query)

    def denoising(
        self, sets: Predictions, mask_features: Float[Array, "B h w M"], points: Points, layout: Layout
    ) -> Sums:
        """Denoising queries: their objects are known, and a row's groups share the weight of one."""
        pairs = denoising_pairs(layout, self.truth)
        live = layout.live / layout.groups[:, None]
        samples = _read(mask_features, pairs.truth, points)

        def one(found, number):
            return self._terms(found, pairs, live, _of_set(samples, number))

        return _over_sets(one, sets)

    def _terms(
        self, found: Predictions, pairs: Pairs, weight: Float[Array, "B Q"], samples: Samples
    ) -> dict[str, Float[Array, ""]]:
        """All terms of one set; `weight` is that of queries in the class term, paired or not."""
        boxes, masks = _rows(found.boxes, pairs.query), _rows(found.masks, pairs.query)
        return {
            "class": self._class(found.logits, pairs, weight),
            **self._box(boxes, pairs),
            **self._mask(masks, pairs, samples),
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
        self, masks: Float[Array, "B P M"], pairs: Pairs, samples: Samples
    ) -> dict[str, Float[Array, ""]]:
        found, wanted = samples.logits(masks), samples.truth
        chosen = checkpoint_name(samples.chosen(found, self.config.points), CHOSEN)
        weight = pairs.weight * pairs.truth.mask_valid
        wrong = (sigmoid_bce(found, wanted) * chosen).sum(-1) / self.config.points
        return {
            "mask": self.config.mask_weight * (wrong * weight).sum(),
            "dice": self.config.dice_weight * (dice(found, wanted, chosen) * weight).sum(),
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


def _read(mask_features: Float[Array, "B h w M"], truth: Truth, points: Points) -> Samples:
    """What masks are compared by, on a first axis of length 1 or of the sets, like `points`."""
    return jax.lax.map(lambda points: at_points(mask_features, truth.masks, points), points)


def _of_set(samples: Samples, number: Int[Array, ""]) -> Samples:
    return jax.tree.map(lambda x: x[0] if len(x) == 1 else x[number], samples)


def _over_sets(one: Callable[..., dict[str, Float[Array, ""]]], *sets: Predictions | Array) -> Sums:
    """Terms of every set, one set after the other: the masks of all would not fit, so none is kept."""
    numbers = jnp.arange(len(jax.tree.leaves(sets)[0]))
    kept = jax.checkpoint_policies.save_only_these_names(CHOSEN)
    turn = jax.checkpoint(lambda _, xs: (None, one(*xs)), policy=kept)
    return jax.lax.scan(turn, None, (*sets, numbers))[1]


def _rows(x: Array, index: Int[Array, "B P"]) -> Array:
    """Row `index[b, p]` of `x[b]`."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
