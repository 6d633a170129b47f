# SPDX-License-Identifier: Apache-2.0
"""Muon: kernels move along their momentum made orthogonal, so that no direction of a matrix is left behind.

Jordan et al. 2024; its size is that of Liu et al. 2025 (arXiv:2502.16982). The Newton-Schulz iterations are
optax's; what is here tells them which axes of our kernels are inputs and which outputs. Under a strategy that
splits kernels, they are gathered for it: meant for models that fit their devices several times over.
"""

import math
import re
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vllm2_jax.sharding.partition import is_variable, path_name

_MOMENTUM = 0.95
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

    kernels = optax.chain(optax.trace(_MOMENTUM, nesterov=True), optax.stateless(_orthogonal))
    return optax.partition({"muon": kernels, "others": others}, chosen)


def _orthogonal(momenta: PyTree, params: PyTree) -> PyTree:
    """The nearest orthogonal matrices, roughly, with numbers of one size whatever the shape.

    Matrices of one shape go through the iterations together: a model has hundreds, of a few shapes, and each
    by itself would be hundreds of operations to compile.
    """
    del params
    leaves, tree = jax.tree.flatten(momenta, is_leaf=is_variable)
    matrices = [_matrices(leaf) for leaf in leaves]
    alike = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[matrix.shape[1:]].append(i)
    updates = list(leaves)
    for shape, members in alike.items():
        together = jnp.concatenate([matrices[i] for i in members])
        together = _newton_schulz(together) * (_RMS * math.sqrt(max(shape)))
        ends = np.cumsum([len(matrices[i]) for i in members])[:-1]
        for i, update in zip(members, jnp.split(together, ends), strict=True):
            updates[i] = leaves[i].replace(update.reshape(leaves[i].shape))
    return jax.tree.unflatten(tree, updates)


def _matrices(kernel: nnx.Variable) -> Float[Array, "N I O"]:
    """A kernel as N stacked matrices, inputs by outputs, by the names of its axes.

    A kernel into heads is one matrix over all heads, and so is one out of them, or one of a convolution.
    """
    names, value = kernel.get_metadata()["axes"], kernel[...]
    start, end = value.ndim - len(names), value.ndim  # `stack` adds a leading axis
    middle = start + 1 if names[0] == "embed" else end - 1
    parts = value.shape[:start], value.shape[start:middle], value.shape[middle:]
    return value.reshape([math.prod(part) for part in parts])


def _newton_schulz(matrices: Float[Array, "N I O"]) -> Float[Array, "N I O"]:
    """optax's iterations alone: its Muon without momentum."""
    alone = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=MuonDimensionNumbers(1, 2))
    return alone.update(matrices, alone.init(matrices))[0]
