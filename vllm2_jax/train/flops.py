# SPDX-License-Identifier: Apache-2.0
"""Operations of a function as it is written, before any compiler: the numerator of model FLOP utilisation.

Products are counted in the traced program, where a scan says how often it turns. Traced without remat and
without loss chunks, that is what the model needs, whatever a strategy computes twice.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from vllm2_jax.sharding.costs import valid_pairs


def count_flops(run: Callable, *arguments: Any) -> float:
    """Multiplications and additions of all products in `run(*arguments)`; arguments may be abstract.

    Of a conditional the most expensive branch counts, of a loop of unknown length one turn. Where the
    platform decides (`nn.deformable` reads by products on a TPU) the model needs no more than the cheapest.
    Kernels that are no XLA (Pallas) do not count: trace with `attention="xla"`. What no result depends on
    does not count either: a gradient rule of our own is traced for frozen kernels, too (`layers.contract`).
    """
    jaxpr = jax.make_jaxpr(run)(*arguments).jaxpr
    return _jaxpr(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _jaxpr(jaxpr: Jaxpr) -> float:
    return sum((_equation(equation) for equation in jaxpr.eqns), 0.0)


def _equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in summed)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        counts = [_jaxpr(branch.jaxpr) for branch in params["branches"]]
        return min(counts) if params.get("branches_platforms") else max(counts)
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return times * sum((_jaxpr(inner) for inner in _inner(params)), 0.0)


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs inside an equation."""
    found = []
    for value in params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, ClosedJaxpr):
                found.append(entry.jaxpr)
            elif isinstance(entry, Jaxpr):
                found.append(entry)
    return found


def _convolution(equation: JaxprEqn) -> float:
    left, right = (_shape(value) for value in equation.invars)
    out, params = _shape(equation.outvars[0]), equation.params
    spec = params["dimension_numbers"]
    pairs = math.prod(
        valid_pairs(left[a], right[b], out[c], stride=stride, pad=pad[0], dilation=dilation)
        for a, b, c, stride, pad, dilation in zip(
            spec.lhs_spec[2:],
            spec.rhs_spec[2:],
            spec.out_spec[2:],
            params["window_strides"],
            params["padding"],
            zip(params["lhs_dilation"], params["rhs_dilation"], strict=True),
            strict=True,
        )
    )
    rows = left[spec.lhs_spec[0]] // params["batch_group_count"]
    return 2.0 * rows * right[spec.rhs_spec[1]] * out[spec.out_spec[1]] * pairs
