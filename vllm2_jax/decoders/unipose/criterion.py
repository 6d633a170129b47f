# SPDX-License-Identifier: Apache-2.0
"""The loss terms of the pose decoder, each a (sum, weight) pair whose coefficient is part of the sum.

A term is named after what it measures (`class`, `box`, `giou`, `keypoints`, `oks`) and where: no suffix is
the last layer, `_0` to `_n` the earlier ones, `_interm` the cells that queries start from, `_dn` and `_dn_0`
to `_dn_n` the denoising queries. The weight of all is the number of objects. Source: official
`SetCriterion`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vllm2_jax.batch import Weighted
from vllm2_jax.decoders.denoising import Layout
from vllm2_jax.decoders.unipose.config import CriterionConfig
from vllm2_jax.decoders.unipose.costs import GIOU_EPS, box_costs, figure_costs
from vllm2_jax.decoders.unipose.outputs import Boxes, Figures, Outputs
from vllm2_jax.decoders.unipose.targets import Truth
from vllm2_jax.ops.boxes import cxcywh_to_xyxy, paired_giou
from vllm2_jax.ops.keypoints import oks, visible_l1
from vllm2_jax.ops.losses import sigmoid_focal
from vllm2_jax.ops.matching import match

Sums = dict[str, Float[Array, " S"]]  # term -> its sum over the batch, for each set of predictions


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The losses of one batch.

    Attributes:
      config: coefficients.
      truth: objects.
      sigmas: spread of every keypoint a row asks for.
    """

    config: CriterionConfig
    truth: Truth
    sigmas: Float[Array, "B P"]

    def __call__(self, outputs: Outputs) -> dict[str, Weighted]:
        """All terms; those of denoising if there are such queries."""
        of_boxes = self.boxes(
            jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), outputs.proposals, outputs.boxes)
        )
        of_figures = self.figures(outputs.figures)
        box_layers, layers = len(outputs.boxes.logits), len(outputs.figures.logits)
        last = box_layers + layers - 1
        sets = [(of_boxes, 0, "_interm")]
        sets += [(of_boxes, 1 + i, f"_{i}") for i in range(box_layers)]
        sets += [
            (of_figures, i, "" if box_layers + i == last else f"_{box_layers + i}") for i in range(layers)
        ]
        if outputs.denoising is not None and outputs.layout is not None:
            of_noise = self.denoising(outputs.denoising, outputs.layout)
            sets += [(of_noise, i, "_dn" if i == last else f"_dn_{i}") for i in range(last + 1)]
        weight = self.truth.valid.sum().astype(jnp.float32)
        return {
            f"{term}{suffix}": (value[i], weight) for sums, i, suffix in sets for term, value in sums.items()
        }

    def boxes(self, sets: Boxes) -> Sums:
        """Predictions without keypoints, [S, B, Q, ...]."""

        def one(found: Boxes) -> dict[str, Array]:
            query = match(box_costs(found.logits, found.boxes, self.truth, self.config), self.truth.valid)
            return self._class_and_box(found.logits, found.boxes, query)

        return jax.vmap(one)(sets)

    def figures(self, sets: Figures) -> Sums:
        """Predictions with keypoints, [S, B, G, ...]."""

        def one(found: Figures) -> dict[str, Array]:
            cost = figure_costs(
                found.logits, found.boxes, found.keypoints, self.truth, self.sigmas, self.config
            )
            query = match(cost, self.truth.valid)
            keypoints = _rows(found.keypoints, query)
            return self._class_and_box(found.logits, found.boxes, query) | self._keypoints(keypoints)

        return jax.vmap(one)(sets)

    def denoising(self, sets: Boxes, layout: Layout) -> Sums:
        """Denoising queries, [S, B, D, ...]: their objects are known, and a row's groups share one weight."""
        share = 1 / layout.groups[:, None]
        target = layout.target
        labels = jnp.take_along_axis(self.truth.labels, target, axis=1)
        wanted = jax.nn.one_hot(labels, sets.logits.shape[-1]) * layout.matched[..., None]
        boxes = _rows(self.truth.boxes, target)

        def one(found: Boxes) -> dict[str, Array]:
            return {
                "class": self._class(found.logits, wanted, layout.live * share),
                **self._box(found.boxes, boxes, layout.matched * share),
            }

        return jax.vmap(one)(sets)

    def _class_and_box(
        self, logits: Float[Array, "B Q T"], boxes: Float[Array, "B Q 4"], query: Array
    ) -> dict[str, Float[Array, ""]]:
        labels = jax.nn.one_hot(self.truth.labels, logits.shape[-1]) * self.truth.valid[..., None]
        of_query = jax.nn.one_hot(query, logits.shape[1])
        wanted = jnp.einsum("bnq,bnt->bqt", of_query, labels)
        everywhere = jnp.ones(logits.shape[:2])
        return {
            "class": self._class(logits, wanted, everywhere),
            **self._box(_rows(boxes, query), self.truth.boxes, self.truth.valid),
        }

    def _class(
        self, logits: Float[Array, "B Q T"], wanted: Float[Array, "B Q T"], weight: Array
    ) -> Float[Array, ""]:
        """Unmatched queries are background. A class that a row has not is as far from wanted as can be: 0."""
        loss = sigmoid_focal(logits, wanted) * weight[..., None]
        return self.config.class_weight * loss.sum()

    def _box(
        self, boxes: Float[Array, "B N 4"], wanted: Float[Array, "B N 4"], weight: Array
    ) -> dict[str, Float[Array, ""]]:
        overlap = paired_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted), eps=GIOU_EPS)
        return {
            "box": self.config.box_weight * (jnp.abs(boxes - wanted).sum(-1) * weight).sum(),
            "giou": self.config.giou_weight * ((1 - overlap) * weight).sum(),
        }

    def _keypoints(self, keypoints: Float[Array, "B N P 2"]) -> dict[str, Float[Array, ""]]:
        """An object without a visible keypoint still adds 1 - 1e-6 to `oks`, without any gradient."""
        truth, weight = self.truth, self.config.keypoint_weight
        alike = oks(keypoints, truth.keypoints, truth.visible, truth.area, self.sigmas[:, None])
        return {
            "keypoints": weight * visible_l1(keypoints, truth.keypoints, truth.visible).sum(),
            "oks": weight * ((1 - alike) * truth.valid).sum(),
        }


def _rows(x: Float[Array, "B Q *D"], index: Array) -> Float[Array, "B N *D"]:
    """Row `index[b, n]` of `x[b]`."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
