# SPDX-License-Identifier: Apache-2.0
"""Denoising queries of DETR-like decoders: true boxes and classes, disturbed, that a decoder has to repair.

They stand in front of the matching queries and are cut into groups, each holding every object of a picture
twice: little disturbed (positive, to be repaired) and much (negative, to be called background). How many
groups there are depends on the number of objects, so a fixed number of D slots is laid out by arithmetic, and
what is left over is dead: nobody looks at it and it has no loss. Source: contrastive denoising of DINO (Zhang
et al., 2022), official `prepare_for_cdn`.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


@struct.dataclass
class Layout:
    """What each of D slots of each row is.

    Attributes:
      group: slots see each other only inside one group.
      target: the object (place in the row's targets) that the slot disturbs.
      real: there is such an object; the other live slots are empty (the zero query at the centre).
      live: the slot belongs to a whole group.
      positive: its half of the group is to be repaired.
      groups: whole groups of the row, at least 1.
    """

    group: Int[Array, "B D"]
    target: Int[Array, "B D"]
    real: Bool[Array, "B D"]
    live: Bool[Array, "B D"]
    positive: Bool[Array, "B D"]
    groups: Int[Array, " B"]

    @property
    def matched(self) -> Bool[Array, "B D"]:
        """Slots whose box and class are known: the real ones of the positive half."""
        return self.real & self.positive


@struct.dataclass
class Draws:
    """All that is random, so that a test can hand in what another program drew.

    Attributes:
      flip: uniform in [0, 1); below half the label noise, the label is replaced.
      label: what it is replaced by.
      sign: +-1 for each of the four corner coordinates.
      size: uniform in [0, 1), how far they move.
    """

    flip: Float[Array, "B D"]
    label: Int[Array, "B D"]
    sign: Float[Array, "B D 4"]
    size: Float[Array, "B D 4"]


def slots(number: int, capacity: int) -> int:
    """D for `number` positive queries wanted and at most `capacity` objects a row."""
    return 2 * max(number, capacity)


def lay_out(counts: Int[Array, " B"], places: Int[Array, " B"], number: int, capacity: int) -> Layout:
    """Cuts the D slots of each row into groups of twice `places`.

    Args:
      counts: objects of each row; they stand before the free places of its targets.
      places: room for objects in half a group, at least `counts`. The official code takes the largest count
        of the batch, so that rows get fewer groups, and empty slots, from their neighbours.
      number: positive queries wanted; a row gets `number // places` groups, one at least.
      capacity: places of the targets.
    """
    slot = jnp.arange(slots(number, capacity))[None]
    m = jnp.maximum(places, 1)[:, None]
    groups = jnp.maximum(number // m, 1)
    group, target, live = slot // (2 * m), slot % m, (slot < 2 * m * groups) & (places > 0)[:, None]
    return Layout(
        group=group,
        target=target,
        real=live & (target < counts[:, None]),
        live=live,
        positive=slot % (2 * m) < m,
        groups=groups[:, 0],
    )


def draw(key: jax.Array, rows: int, slots: int, labels: Int[Array, "B 1"] | int) -> Draws:
    """Fresh draws; random labels are below `labels`, one number or one a row."""
    flip, label, sign, size = jax.random.split(key, 4)
    return Draws(
        flip=jax.random.uniform(flip, (rows, slots)),
        label=jax.random.randint(label, (rows, slots), 0, labels),
        sign=jax.random.rademacher(sign, (rows, slots, 4), jnp.float32),
        size=jax.random.uniform(size, (rows, slots, 4)),
    )


def disturb(
    layout: Layout,
    draws: Draws,
    boxes: Float[Array, "B N 4"],
    labels: Int[Array, "B N"],
    *,
    label_noise: float,
    box_noise: float,
    eps: float,
) -> tuple[Int[Array, "B D"], Float[Array, "B D 4"]]:
    """Label and box (as logits of cxcywh) of every slot; empty and dead slots get label 0 and logits 0.

    Args:
      boxes, labels: targets, cxcywh in 0 to 1.
      label_noise: twice the share of labels replaced (0.5 in both decoders).
      box_noise: how far corners move, in half widths and heights (1.0); those of negatives one more.
      eps: of the inverse sigmoid. A box turned over has a negative size, which becomes `eps`.
    """
    clean = jnp.take_along_axis(labels, layout.target, axis=1)
    noisy = jnp.where(draws.flip < label_noise / 2, draws.label, clean)
    box = jnp.take_along_axis(boxes, layout.target[..., None], axis=1)
    half = jnp.concatenate([box[..., 2:], box[..., 2:]], axis=-1) / 2
    move = draws.sign * (draws.size + ~layout.positive[..., None]) * half * box_noise
    logits = inverse_sigmoid(xyxy_to_cxcywh(jnp.clip(cxcywh_to_xyxy(box) + move, 0, 1)), eps)
    return jnp.where(layout.real, noisy, 0), jnp.where(layout.real[..., None], logits, 0.0)


def sees(layout: Layout, others: int) -> Bool[Array, "B D _"]:
    """Where each slot may look: its own group and all `others` (matching queries), which come after."""
    own = layout.group[:, :, None] == layout.group[:, None, :]
    return jnp.concatenate([own, jnp.ones((*layout.group.shape, others), bool)], axis=-1)
