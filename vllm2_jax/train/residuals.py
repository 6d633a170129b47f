# SPDX-License-Identifier: Apache-2.0
"""What the backward pass finds stored, by part of the model: the activations that fill a device's memory."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var

from vllm2_jax.sharding.costs import part_of_files

Arrays = list[jax.ShapeDtypeStruct]


def stored(loss: Callable[..., jax.Array], params: Any, *arguments: Any) -> dict[str, Arrays]:
    """Part of the model -> arrays that `jax.grad(loss)` keeps between its two passes, the largest first.

    Args:
      loss: `(params, *arguments) -> scalar`.
      params, arguments: may be abstract. They are kept anyway and do not count.
    """

    def backward(params: Any, *arguments: Any) -> Any:
        return jax.vjp(lambda params: loss(params, *arguments), params)[1]

    jaxpr = jax.make_jaxpr(backward)(params, *arguments).jaxpr
    born = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    found: dict[str, Arrays] = {}
    outs = [out for out in jaxpr.outvars if isinstance(out, Var)]  # the others are constants
    for value in dict.fromkeys(out for out in outs if out in born):
        frames = born[value].source_info.traceback
        files = [frame.file_name for frame in frames.frames] if frames else []
        aval = value.aval
        if isinstance(aval, jax.core.ShapedArray):  # tokens of effects take no memory
            shape = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
            found.setdefault(part_of_files(reversed(files)), []).append(shape)
    for shapes in found.values():
        shapes.sort(key=lambda x: -x.size * x.dtype.itemsize)
    return found
