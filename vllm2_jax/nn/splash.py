# SPDX-License-Identifier: Apache-2.0
"""Splash attention, jax's own TPU kernel, fitted to our shapes and to the mesh.

The kernel works on one row on one device, in blocks of a multiple of 128 columns. So rows are mapped by vmap,
lengths and head widths padded, and on a mesh it runs inside `shard_map` over the axes of "batch" and "heads".
On a CPU it is interpreted: slow, but the same program for tests.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vllm2_jax.nn.axes import dividing_axes

LANES = 128  # columns and head widths are padded to what a TPU register holds
BLOCKS = (512, 384, 256, 128)
WASTE = 1 / 8  # a bigger block may pad a row by up to this share


def splash(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    causal: bool = False,
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H D"]:
    """Scaled dot-product attention without the T x S matrix; arguments as in `nn.attention.attention`."""
    width, (rows, length, heads, _) = q.shape[-1], q.shape
    block_q, block_k = _block(length), _block(k.shape[1])
    padded = length % block_q or k.shape[1] % block_k
    segments_q = segments_k = segments
    if padded and segments is None:
        segments_q, segments_k = jnp.ones((rows, length), jnp.int32), jnp.ones((rows, k.shape[1]), jnp.int32)
    batch, over_heads, k, v = _split(rows, heads, k, v)

    def by_head(x):  # before anything is padded: columns may come split, and leave so
        spec = PartitionSpec(batch, None, over_heads)
        return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)

    def fit(x, block):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, -width % _lanes(width))))
        return x.transpose(0, 2, 1, 3)

    def fit_segments(s, block):  # padding becomes segment 0
        return None if s is None else jnp.pad(s, ((0, 0), (0, -s.shape[1] % block)))

    q = fit(by_head(q * jnp.asarray(1 / math.sqrt(width), q.dtype)), block_q)
    k, v = fit(by_head(k), block_k), fit(by_head(v), block_k)
    segments_q, segments_k = fit_segments(segments_q, block_q), fit_segments(segments_k, block_k)

    def rows_of_a_device(q, k, v, segments_q, segments_k):
        kernel = _kernel(q.shape[1], q.shape[2], k.shape[2], block_q, block_k, causal, _interpret())

        def one(q, k, v, segments_q, segments_k):
            ids = None
            if segments_q is not None:
                ids = splash_attention_kernel.SegmentIds(segments_q, segments_k)
            return kernel(q, k, v, segment_ids=ids)

        return jax.vmap(one)(q, k, v, segments_q, segments_k)

    if not jax.sharding.get_abstract_mesh().empty:
        spec, flat = PartitionSpec(batch, over_heads), PartitionSpec(batch)
        rows_of_a_device = jax.shard_map(
            rows_of_a_device, in_specs=(spec, spec, spec, flat, flat), out_specs=spec, check_vma=False
        )
    out = rows_of_a_device(q, k, v, segments_q, segments_k)
    return by_head(out.transpose(0, 2, 1, 3)[:, :length, :, :width])


def _block(length: int) -> int:
    """Columns a block: the biggest size that pads little."""
    for block in BLOCKS:
        if -length % block <= WASTE * length or block == BLOCKS[-1]:
            return block
    raise AssertionError("unreachable")


def _lanes(width: int) -> int:
    """Multiple that a head width is padded to: 64 works as it is and would double otherwise."""
    return LANES // 2 if width <= LANES // 2 else LANES


def _split(rows: int, heads: int, k: jax.Array, v: jax.Array):
    """Mesh axes to split rows and heads over (None where they do not divide), and keys and values to match.

    Fewer key heads than devices are repeated, so that each device holds the ones its queries need.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None, None, k, v
    over_heads = dividing_axes("heads", heads)
    if over_heads and k.shape[2] % math.prod(mesh.shape[axis] for axis in over_heads):
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    return dividing_axes("batch", rows), over_heads, k, v


def _interpret() -> bool:
    """Whether this is traced for something that is no TPU, going by the mesh if there is one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return platform != "tpu"


def _kernel(heads: int, length: int, keys: int, block_q: int, block_k: int, causal: bool, interpret: bool):
    """The kernel for one row; its mask is a rule, not an array."""
    rule = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    make = functools.partial(
        splash_attention_kernel.make_splash_mha,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        # The kernel's result and its log-sum-exp: what the "names" remat policy keeps of a block.
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )
    return make(splash_attention_mask.MultiHeadMask([rule((length, keys))] * heads))
