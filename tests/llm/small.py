# SPDX-License-Identifier: Apache-2.0
"""A small language model with odd sizes, all its parameters random."""

import jax
import jax.numpy as jnp
import numpy as np

from vllm2_jax.llm.llama import Llama, LlamaConfig
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.nn.rope import RopeConfig

VOCAB = 61

CONFIG = LlamaConfig(
    vocab=VOCAB,
    width=24,
    depth=3,
    heads=6,
    kv_heads=2,
    mlp=40,
    rms_eps=3e-4,
    rope=RopeConfig(theta=777.0),
    qkv_bias=True,
    out_bias=True,
)


def model(config=CONFIG, *, scale=0.3, dtype=jnp.float32, **options) -> Llama:
    """Random norms and biases too: ones and zeros would hide a missing one."""
    abstract = jax.eval_shape(lambda: Llama(config, dtype=dtype, rngs=Rngs(0), **options))
    leaves, treedef = jax.tree.flatten(abstract)
    rng = np.random.default_rng(5)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    )


def tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
    """Random ids."""
    return jax.random.randint(jax.random.key(seed), (rows, length), 0, VOCAB)


@jax.jit
def hidden(
    llm: Llama,
    ids: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """One pass over rows that are unpacked and unpadded unless it is said otherwise."""
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    if segments is None:
        segments = jnp.ones_like(ids)
    return llm(llm.embed_tokens(ids), positions=positions, segments=segments, key=key)
