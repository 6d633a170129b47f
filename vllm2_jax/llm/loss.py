# SPDX-License-Identifier: Apache-2.0
"""Next-token loss: all logits at once, or a few columns at a time and only for columns with a label."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vllm2_jax.batch import IGNORE
from vllm2_jax.llm.llama import project_to_vocab
from vllm2_jax.nn.axes import dividing_axes

Rows = tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]


def total_and_rows(
    hidden: Float[Array, "B L D"], labels: Int[Array, "B L"], head: nnx.Param, *, chunk: int = 0
) -> tuple[Float[Array, ""], Rows]:
    """Cross entropy of each label, read from the hidden state of the column before it.

    Only the sum of all rows has a gradient. The values of rows are for people to watch.

    The float32 logits of 4096 columns of 32,026 tokens take 0.5 GiB a row, twice that with their gradient.
    With `chunk` they exist for that many columns a row at a time, and only for columns with a label (a
    picture has none, nor has a question). The gradient of a chunk is formed while its logits are there, so
    that none are computed twice.

    Args:
      hidden: states after the last norm.
      labels: token each column should be predicted as, or IGNORE; the first column's is never used.
      head: `[D, V]`.
      chunk: columns a row at a time; 0 for all.

    Returns:
      Summed loss of all rows; then of each row: loss, number of labels that score highest, number of labels.
    """
    if chunk < 0:
        raise ValueError(f"the loss chunk is {chunk}; give a number of columns, or 0 for all at once")
    # Column t is to predict label t + 1; the last one predicts nothing, which keeps the length divisible.
    target = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    if chunk == 0:
        total, values = _sum(hidden, target, head[...])
    else:
        total, values = _by_device(hidden, target, head[...], min(chunk, hidden.shape[1]))
    rows = [x.sum(axis=1).astype(jnp.float32) for x in (*values, target != IGNORE)]
    loss, correct, weight = jax.lax.stop_gradient(rows)
    return total, (loss, correct, weight)


def _sum(hidden, target, head):
    """Loss of columns `[..., D]` in all; then of each column, and whether its target scores highest."""
    logits = project_to_vocab(hidden, head)
    counts = target != IGNORE
    wanted = jnp.take_along_axis(logits, jnp.where(counts, target, 0)[..., None], axis=-1)[..., 0]
    loss = jnp.where(counts, jax.nn.logsumexp(logits, axis=-1) - wanted, 0.0)
    # Compared by value, so that no second pass over the vocabulary is needed: the target is the best token.
    return loss.sum(), (loss, counts & (wanted >= logits.max(axis=-1)))


def _by_device(hidden, target, head, chunk):
    """`_sum` of `[B, L, D]`, `chunk` columns a row at a time.

    On a mesh inside a `shard_map` over the axes of "batch": each device sorts its own columns, gathers the
    head once and adds up its gradient over the chunks alone. Under automatic sharding every chunk gathers the
    head and scatters the sum of its gradients: at 7B half of all that a device sends in a step.
    """

    def local(hidden, target, head):
        flat = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
        total, values = _in_chunks(*flat, head.astype(jnp.float32), len(hidden) * chunk)
        return total[None], jax.tree.map(lambda x: x.reshape(target.shape), values)

    axes = None if jax.sharding.get_abstract_mesh().empty else dividing_axes("batch", hidden.shape[0])
    if not axes:
        total, values = local(hidden, target, head)
    else:
        split = PartitionSpec(axes)
        run = jax.shard_map(
            local,
            in_specs=(split, split, PartitionSpec()),
            out_specs=split,
            axis_names=set(axes),
            check_vma=False,
        )
        total, values = run(hidden, target, head.astype(hidden.dtype))
    return total.sum(), values


def _walk(hidden, target, head, size, *, gradient):
    """`_sum` of `[N, D]`, `size` columns at a time; with `gradient` also the gradients of the sum.

    Columns with a target come first, so that all chunks but the first few have nothing to do. Devices that
    share rows (along a "tensor" axis) agree on which, so none waits for another inside of a chunk.
    """
    order = jnp.argsort(target == IGNORE, stable=True)
    missing = -len(target) % size
    xs = (
        jnp.pad(hidden[order], ((0, missing), (0, 0))).reshape(-1, size, hidden.shape[1]),
        jnp.pad(target[order], (0, missing), constant_values=IGNORE).reshape(-1, size),
    )

    def full(sums, hidden, target):
        if not gradient:
            total, values = _sum(hidden, target, head)
            return sums + total, values
        run = jax.value_and_grad(_sum, (0, 2), has_aux=True)
        (total, values), (d_hidden, d_head) = run(hidden, target, head)
        return (sums[0] + total, sums[1] + d_head), (values, d_hidden)

    def empty(sums, hidden, target):
        values = jnp.zeros(size), jnp.zeros(size, bool)
        return sums, (values, jnp.zeros_like(hidden)) if gradient else values

    # A scan with branches, not a loop that ends early: reports count the turns of a loop from its program.
    def body(sums, xs):
        return jax.lax.cond((xs[1] != IGNORE).any(), full, empty, sums, *xs)

    zero = jnp.zeros(())
    sums, columns = jax.lax.scan(body, (zero, jnp.zeros_like(head)) if gradient else zero, xs)
    place = jnp.argsort(order)
    return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place], columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_chunks(hidden, target, head, size):
    """`_sum` of `[N, D]`, `size` columns at a time; only the sum may be differentiated."""
    return _walk(hidden, target, head, size, gradient=False)


def _in_chunks_forward(hidden, target, head, size):
    (total, d_head), (values, d_hidden) = _walk(hidden, target, head, size, gradient=True)
    # As narrow as what they are added to in the end: at 7B the head's gradient is half a GiB in float32.
    return (total, values), (d_hidden, d_head.astype(hidden.dtype))


def _in_chunks_backward(size, saved, cotangents):
    d_hidden, d_head = saved
    by = cotangents[0]
    return (d_hidden * by).astype(d_hidden.dtype), None, d_head.astype(jnp.float32) * by


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)
