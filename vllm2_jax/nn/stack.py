# SPDX-License-Identifier: Apache-2.0
"""Repeated blocks as one module with a leading `layers` axis: built by vmap, applied by scan."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from vllm2_jax.nn.rngs import Rngs

Block = TypeVar("Block", bound=nnx.Module)

# What the backward pass finds stored instead of computing again, by name.
_POLICIES = jax.checkpoint_policies
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,  # store everything: fastest where it fits
    "full": _POLICIES.nothing_saveable,  # store only the input of each block
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,  # store matrix products with weights
    # store what the language model's projections (adapters added) and attention give: no product runs twice
    "projections": _POLICIES.save_only_these_names("projection", "attention_out"),
    "names": _POLICIES.save_only_these_names("attention_out", "mlp_hidden"),
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["attention_out", "mlp_hidden"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematted(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`body(block, ...)` whose backward pass keeps what the policy `remat` says, for blocks of any size.

    Raises:
      ValueError: a policy that is not in `REMAT`.
    """
    if remat not in REMAT:
        raise ValueError(f"unknown remat policy {remat!r}; choose one of {', '.join(REMAT)}")
    policy = REMAT[remat]
    return body if policy is None else jax.checkpoint(body, policy=policy)


def stack(make: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
    """`depth` independently initialised copies of one block, every parameter stacked on a new first axis."""
    return jax.vmap(lambda key: make(Rngs(key)))(jax.random.split(rngs.params(), depth))


def unstack(blocks: Any) -> Sequence[Any]:
    """The blocks of a stack one by one; a list of blocks as it is."""
    if isinstance(blocks, nnx.List):
        return blocks
    depth = jax.tree.leaves(blocks)[0].shape[0]
    return [jax.tree.map(operator.itemgetter(i), blocks) for i in range(depth)]


def run(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, remat: str = "none", unroll: int = 1
) -> tuple[Any, Any]:
    """Scans `body(carry, x) -> (carry, y)` over the stacked block(s) in `xs`.

    Args:
      body: applies one block; `x` is one layer's slice of `xs` (a block, or a tuple that starts with one).
      carry: what flows from block to block, usually the residual stream.
      xs: a stacked block, alone or in a pytree with other per-layer inputs (a KV cache).
      remat: a key of `REMAT`.
      unroll: layers in one turn of the loop. All of them save a CPU the copies into and out of the stacks, at
        the price of compiling each; a TPU copies nothing and has no use for it.

    Returns:
      The last carry, and the `y` of every layer stacked on a first axis.
    """
    return jax.lax.scan(rematted(body, remat), carry, xs, unroll=unroll)
