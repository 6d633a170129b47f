# SPDX-License-Identifier: Apache-2.0
"""How one official (PyTorch) tensor becomes one of ours, and back.

All only move numbers, so they hold for gradients as well. Heads stand before the head width everywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """Attributes:
    forward: official array -> our array, or a tuple of arrays for a rule with several paths.
    inverse: our array(s), as arguments -> official array.
    """

    forward: Callable[[np.ndarray], Any]
    inverse: Callable[..., np.ndarray]


def permute(*axes: int) -> Transform:
    """Axis i of ours is axis `axes[i]` of the official tensor."""
    back = tuple(axes.index(i) for i in range(len(axes)))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(back))


IDENTITY = Transform(lambda x: x, lambda x: x)
TRANSPOSE = permute(1, 0)  # Linear, [out, in] -> [in, out]
CONV = permute(2, 3, 1, 0)  # Conv2d, OIHW -> HWIO
# A 1x1 Conv2d is a dense layer on channels, [out, in, 1, 1] -> [in, out].
POINTWISE = Transform(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None])


def chain(first: Transform, second: Transform) -> Transform:
    """`first`, then `second`; both with one array on either side."""
    return Transform(lambda x: second.forward(first.forward(x)), lambda x: first.inverse(second.inverse(x)))


def squeeze(count: int) -> Transform:
    """Drops `count` leading axes of length 1 that the official tensor has and ours has not."""

    def drop(x: np.ndarray) -> np.ndarray:
        if x.shape[:count] != (1,) * count:
            raise ValueError(f"expected {count} leading axes of length 1")
        return x.reshape(x.shape[count:])

    return Transform(drop, lambda x: x.reshape((1,) * count + x.shape))


def split_heads(heads: int) -> Transform:
    """Linear into heads, [heads * d, in] -> [in, heads, d]."""
    return Transform(
        lambda x: x.reshape(heads, -1, x.shape[1]).transpose(2, 0, 1),
        lambda x: x.transpose(1, 2, 0).reshape(-1, x.shape[0]),
    )


def split_heads_bias(heads: int) -> Transform:
    """Bias of a linear into heads, [heads * d] -> [heads, d]."""
    return Transform(lambda x: x.reshape(heads, -1), lambda x: x.reshape(-1))


def split_axes(*shape: int) -> Transform:
    """Linear into several axes, [product of shape, in] -> [in, *shape]."""
    return Transform(lambda x: x.T.reshape(-1, *shape), lambda x: x.reshape(len(x), -1).T)


def split_axes_bias(*shape: int) -> Transform:
    """Bias of a linear into several axes, [product of shape] -> shape."""
    return Transform(lambda x: x.reshape(shape), lambda x: x.reshape(-1))


def join_heads(heads: int) -> Transform:
    """Linear out of heads, [out, heads * d] -> [heads, d, out]."""
    return Transform(
        lambda x: x.reshape(x.shape[0], heads, -1).transpose(1, 2, 0),
        lambda x: x.transpose(2, 0, 1).reshape(x.shape[2], -1),
    )


def split(count: int, part: Transform) -> Transform:
    """A tensor of `count` equal blocks on its first axis ([q; k; v]); `part` turns each into its own leaf."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if x.shape[0] % count:
            raise ValueError(f"{x.shape[0]} rows are not {count} equal blocks")
        blocks = x.reshape(count, -1, *x.shape[1:])
        return tuple(part.forward(block) for block in blocks)

    return Transform(forward, lambda *xs: np.concatenate([part.inverse(x) for x in xs]))
