# SPDX-License-Identifier: Apache-2.0
"""Next-token loss, with the logits of all columns at once or of a few columns at a time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vllm2_jax.batch import IGNORE, Weighted
from vllm2_jax.llm.llama import project_to_vocab
from vllm2_jax.nn.axes import dividing_axes

Rows = tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]


def cross_entropy(
    hidden: Float[Array, "B L D"], labels: Int[Array, "B L"], head: nnx.Param, *, chunk: int = 0
) -> tuple[Weighted, Weighted]:
    """Cross entropy of each label, read from the hidden state of the column before it.

    Arguments as in `row_losses`.

    Returns:
      (sum of losses, number of labels) and (number of labels that score highest, number of labels).
    """
    loss, correct, weight = (x.sum() for x in row_losses(hidden, labels, head, chunk=chunk))
    return (loss, weight), (correct, weight)


def row_losses(
    hidden: Float[Array, "B L D"], labels: Int[Array, "B L"], head: nnx.Param, *, chunk: int = 0
) -> Rows:
    """The same for each row: summed loss, number of labels that score highest, number of labels.

    The float32 logits of 4096 columns of 32,026 tokens take 0.5 GiB a row, twice that with their gradient.
    With `chunk` they exist for that many columns of each row at a time, and the backward pass computes them
    again.

    Args:
      hidden: states after the last norm.
      labels: token each column should be predicted as, or IGNORE; the first column's is never used.
      head: `[D, V]`.
      chunk: columns at a time; 0 for all.
    """
    if chunk < 0:
        raise ValueError(f"the loss chunk is {chunk}; give a number of columns, or 0 for all at once")
    # Column t is to predict label t + 1; the last one predicts nothing, which keeps the length divisible.
    target = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    if chunk == 0 or chunk >= hidden.shape[1]:
        loss, correct = _sums(hidden, target, head[...])
    else:
        loss, correct = _chunked_sums(hidden, target, head[...], chunk)
    return loss, correct, (target != IGNORE).sum(axis=1).astype(jnp.float32)


def _sums(
    hidden: Float[Array, "B L D"], target: Int[Array, "B L"], head: Float[Array, "D V"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Summed loss and count of right guesses over the columns that have a target."""
    logits = project_to_vocab(hidden, head)
    counts = target != IGNORE
    wanted = jnp.take_along_axis(logits, jnp.where(counts, target, 0)[..., None], axis=-1)[..., 0]
    loss = jnp.where(counts, jax.nn.logsumexp(logits, axis=-1) - wanted, 0.0).sum(axis=1)
    # Compared by value, so that no second pass over the vocabulary is needed: the target is the best token.
    correct = (counts & (wanted >= logits.max(axis=-1))).sum(axis=1)
    return loss, correct.astype(jnp.float32)


def _chunked_sums(hidden, target, head, chunk):
    """The same, `chunk` columns of every row at a time.

    On a mesh inside a `shard_map` over the axes of "batch": each device gathers the head once and adds up its
    gradient over the chunks alone. Under automatic sharding every chunk gathers the head and scatters the
    sum of its gradients: at 7B half of all that a device sends in a step.
    """
    dtype = head.dtype

    def local(hidden, target, head):
        rows, length, width = hidden.shape
        missing = -length % chunk
        hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0))).reshape(rows, -1, chunk, width)
        target = jnp.pad(target, ((0, 0), (0, missing)), constant_values=IGNORE).reshape(rows, -1, chunk)
        head = head.astype(dtype)  # what the gradients of the chunks are added up in

        def body(sums, xs):
            loss, correct = jax.checkpoint(_sums)(*xs, head)
            return (sums[0] + loss, sums[1] + correct), None

        zero = jnp.zeros((rows,), jnp.float32)
        return jax.lax.scan(body, (zero, zero), (hidden.swapaxes(0, 1), target.swapaxes(0, 1)))[0]

    axes = None if jax.sharding.get_abstract_mesh().empty else dividing_axes("batch", hidden.shape[0])
    if not axes:
        return local(hidden, target, head)
    split = PartitionSpec(axes)
    run = jax.shard_map(
        local,
        in_specs=(split, split, PartitionSpec()),
        out_specs=split,
        axis_names=set(axes),
        check_vma=False,
    )
    return run(hidden, target, head.astype(hidden.dtype))
