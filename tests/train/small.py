# SPDX-License-Identifier: Apache-2.0
"""A model of two linear maps with the interface of `VisionLLMv2`, where the whole one proves no more."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vllm2_jax.batch import IGNORE, Batch, Inputs, TaskRows
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import RMSNorm, linear, param
from vllm2_jax.nn.rngs import Rngs

WIDTH, VOCAB, LENGTH = 16, 32, 6


class Small(nnx.Module):
    """Embedding, one gated layer, head; the task "box" also regresses four numbers from its first column."""

    def __init__(self, *, rngs: nnx.Rngs, vocab: int = VOCAB):
        init = nnx.initializers.normal(0.5)
        self.embed = param(init, rngs, (vocab, WIDTH), ("vocab", "embed"))
        self.up = linear(WIDTH, 2 * WIDTH, ("embed", "mlp"), dtype=jnp.float32, rngs=rngs)
        self.down = linear(2 * WIDTH, WIDTH, ("mlp", "embed"), dtype=jnp.float32, rngs=rngs)
        self.norm = RMSNorm(WIDTH, eps=1e-5, rngs=rngs)
        self.box = linear(WIDTH, 4, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def losses(self, batch: Batch, *, key: jax.Array | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Cross entropy over labelled columns, squared error over boxes."""
        terms: dict[str, Any] = {"lm": (jnp.zeros(()), jnp.zeros(()))}
        watch = {}
        for task, rows in batch.items():
            x = self.embed[...][rows.inputs.tokens]
            x = constrain(x, "batch", None, "length", "embed")
            x = self.norm(x + self.down(jax.nn.silu(self.up(x))))
            valid = rows.labels != IGNORE
            logits = jax.nn.log_softmax(x @ self.embed[...].T)
            picked = jnp.take_along_axis(logits, jnp.maximum(rows.labels, 0)[..., None], -1)[..., 0]
            loss = -(picked * valid).sum(), valid.sum().astype(jnp.float32)
            watch[f"{task}/lm"] = loss
            terms["lm"] = (terms["lm"][0] + loss[0], terms["lm"][1] + loss[1])
            if "box" in rows.targets:
                error = jnp.square(self.box(x[:, :, 0]) - rows.targets["box"]["y"]).mean(-1)
                weight = rows.targets["box"]["valid"].astype(jnp.float32)
                terms["box/l2"] = ((error * weight).sum(), weight.sum())
        return terms, watch


def make_small(vocab: int = VOCAB) -> Small:
    """The model from a fixed seed."""
    return Small(rngs=Rngs(0), vocab=vocab)


def rows(rng: np.random.Generator, groups: int, count: int, *, box: bool) -> TaskRows:
    """Random rows; the number of labelled columns and of valid boxes differs from group to group."""
    shape = (groups, count, LENGTH)
    tokens = rng.integers(0, VOCAB, shape).astype(np.int32)
    zeros = np.zeros(shape, np.int32)
    inputs = Inputs(
        tokens=tokens,
        source=zeros,
        index=zeros,
        positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape).copy(),
        segments=np.ones(shape, np.int32),
        tiles=np.zeros((groups, 0, 8, 8, 3), np.uint8),
        masks=np.zeros((groups, 0, 8, 8), np.uint8),
        mask_tile=np.zeros((groups, 0), np.int32),
    )
    box_targets = {
        "y": rng.normal(size=(groups, count, 4)).astype(np.float32),
        "valid": rng.random((groups, count)) < 0.7,
    }
    return TaskRows(
        inputs=inputs,
        labels=np.where(rng.random(shape) < 0.6, (tokens + 1) % VOCAB, IGNORE).astype(np.int32),
        link_position=np.zeros((groups, count, 0, 4), np.int32),
        link_valid=np.zeros((groups, count, 0), bool),
        targets={"box": box_targets} if box else {},
    )


def make_batch(seed: int, groups: int = 8) -> dict[str, TaskRows]:
    """Two tasks: "chat" with two rows a group, "det" with one and boxes."""
    rng = np.random.default_rng(seed)
    return {"chat": rows(rng, groups, 2, box=False), "det": rows(rng, groups, 1, box=True)}
