# SPDX-License-Identifier: Apache-2.0
"""Muon: kernels move along their momentum made orthogonal, so that no direction of a matrix is left behind.

Jordan et al. 2024; its size is that of Liu et al. 2025 (arXiv:2502.16982). The Newton-Schulz iterations are
optax's; what is here tells them which axes of our kernels are inputs and which outputs. Under a strategy that
splits kernels, every iteration gathers them: meant for models that fit their devices several times over.
"""

import math
import re
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vllm2_jax.sharding.partition import is_variable, path_name

# One triple for each of the five iterations makes optax loop over them. Given a single one it writes out all
# five for every kernel, which takes minutes to compile.
_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
_RMS = 0.2  # of the numbers of an update: about Adam's, so that one learning rate suits both


def muon(others: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
    """Muon for the kernels whose path `pattern` finds, `others` for what is left.

    The update has the sign of the gradient and is meant for a learning rate as Adam's.

    Raises:
      ValueError: on `init`, a parameter is found that is no matrix, or none is found.
    """

    def chosen(params: PyTree) -> Any:
        def one(path, leaf: nnx.Variable) -> str:
            if not re.search(pattern, path_name(path)):
                return "others"
            if len(leaf.get_metadata()["axes"]) < 2:
                raise ValueError(
                    f"optimizer.muon finds {path_name(path)}, which is no matrix: name kernels only"
                )
            return "muon"

        labels = jax.tree_util.tree_map_with_path(one, params, is_leaf=is_variable)
        if "muon" not in jax.tree.leaves(labels):
            raise ValueError(f"optimizer.muon={pattern!r} finds no parameter that is trained")
        return labels

    kernels = optax.chain(
        scale_by_muon(_NEWTON_SCHULZ, weight_dimension_numbers=_sides), optax.stateless(_size)
    )
    return optax.partition({"muon": kernels, "others": others}, chosen)


def _sides(params: PyTree) -> Any:
    """Inputs and outputs of every kernel, by the names of its axes; the axis of stacked layers is neither.

    A kernel into heads is one matrix over all heads, and so is one out of them, or one of a convolution.
    """

    def one(leaf: nnx.Variable) -> nnx.Variable:
        names = leaf.get_metadata()["axes"]
        start, end = leaf.ndim - len(names), leaf.ndim
        middle = start + 1 if names[0] == "embed" else end - 1
        return leaf.replace(MuonDimensionNumbers(tuple(range(start, middle)), tuple(range(middle, end))))

    return jax.tree.map(one, params, is_leaf=is_variable)


def _size(updates: PyTree, params: PyTree) -> PyTree:
    """Gives the numbers of an update one size, whatever the shape of the kernel."""
    del params

    def one(update: jax.Array, sides: MuonDimensionNumbers) -> jax.Array:
        inputs, outputs = (math.prod(update.shape[axis] for axis in side) for side in sides)
        return update * (_RMS * math.sqrt(max(inputs, outputs)))

    return jax.tree.map(one, updates, _sides(updates))
