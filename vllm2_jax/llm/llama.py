# SPDX-License-Identifier: Apache-2.0
"""The decoder-only transformer of Llama, Vicuna and InternLM2: one skeleton, told apart by its config.

Pre-norm blocks with RMS norms, rotary positions, grouped-query attention and a gated SiLU feed-forward,
scanned over a leading `layers` axis. InternLM2 differs in the names and the packing of its checkpoint
(`convert/internlm2.py`), in optional biases and in its rotary scaling.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.llm import lora
from vllm2_jax.llm.cache import KVCache
from vllm2_jax.llm.lora import ATTENTION, PROJECTIONS, LoRA, LoRAConfig
from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.layers import Axes, RMSNorm, contract, param
from vllm2_jax.nn.lookup import lookup
from vllm2_jax.nn.rope import RopeConfig, rotate, rotation
from vllm2_jax.nn.stack import run, stack, unstack

EMBED_INIT = nnx.initializers.normal(0.02)  # as in the official configs
# Axes of what projections give. Where one mesh axis splits columns and heads, it splits columns.
_HEADS, _KV_HEADS = (("batch", "length", heads, None) for heads in ("heads", "kv_heads"))
_WIDE = ("batch", "length", "mlp")


def kernel_init(inputs: int, outputs: int) -> jax.nn.initializers.Initializer:
    """Normal, with variance 1 / fan-in, for a kernel with that many axes on either side.

    At the released widths this is the official 0.02 (1 / sqrt(4096) = 0.016); a small model that starts from
    nothing with 0.02 hardly moves its residual stream, and takes much longer to look at its picture.
    """
    ins, outs = tuple(range(inputs)), tuple(range(inputs, inputs + outputs))
    return nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=ins, out_axis=outs)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a language model. The defaults are those of Vicuna-7B with the 26 special tokens.

    Attributes:
      vocab: rows of the embedding and columns of the head, which are not tied.
      width, depth, mlp: residual width, blocks, width of the feed-forward layer.
      heads, kv_heads: query heads, and the key and value heads that groups of them share.
      rms_eps: epsilon of the norms.
      rope: positions.
      qkv_bias, out_bias: biases on the attention's projections (InternLM2's `bias` sets both).
      lora: adapters, or None for none.
    """

    vocab: int = 32_026
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 11_008
    rms_eps: float = 1e-5
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    qkv_bias: bool = False
    out_bias: bool = False
    lora: LoRAConfig | None = None

    def __post_init__(self):
        if self.width % self.heads or self.head_dim % 2 or self.heads % self.kv_heads:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: the width must be a "
                "multiple of the heads with an even quotient, and the heads a multiple of the kv_heads"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads


class Projection(nnx.Module):
    """A dense layer between axes of any number: `kernel` [*inputs, *outputs], with an adapter if targeted."""

    def __init__(
        self,
        name: str,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        bias: bool = False,
        adapter: LoRAConfig | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        n = len(inputs)
        self.kernel = param(kernel_init(n, len(outputs)), rngs, (*inputs, *outputs), axes)
        self.bias = param(nnx.initializers.zeros, rngs, outputs, axes[n:]) if bias else None
        self.lora = (
            LoRA(adapter, inputs, outputs, axes, dtype=dtype, rngs=rngs)
            if adapter is not None and adapter.adapts(name)
            else None
        )
        self.inputs, self.dtype = n, dtype
        self.gated = len(outputs) > 1 and axes[n] is None

    def __call__(self, x: Float[Array, "B T *I"], key: jax.Array | None = None) -> Float[Array, "B T *O"]:
        """Contracts the last axes of `x`; a key switches the adapter's dropout on."""
        y = contract(x, self.kernel[...].astype(self.dtype), self.inputs, self.gated)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return checkpoint_name(y if self.lora is None else y + self.lora(x, key), "projection")


class Attention(nnx.Module):
    """The projections of grouped-query attention; who sees whom is decided by the caller of `Block`."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, hd = config.width, config.head_dim
        kinds: dict[str, Any] = {"adapter": config.lora, "dtype": dtype, "rngs": rngs}
        grouped: Axes = ("embed", "kv_heads", "head_dim")
        self.q = Projection(
            "q", (d,), (config.heads, hd), ("embed", "heads", "head_dim"), bias=config.qkv_bias, **kinds
        )
        self.k = Projection("k", (d,), (config.kv_heads, hd), grouped, bias=config.qkv_bias, **kinds)
        self.v = Projection("v", (d,), (config.kv_heads, hd), grouped, bias=config.qkv_bias, **kinds)
        self.out = Projection(
            "out", (config.heads, hd), (d,), ("heads", "head_dim", "embed"), bias=config.out_bias, **kinds
        )


class Mlp(nnx.Module):
    """The projections of the gated feed-forward layer."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, wide = (config.width,), (config.mlp,)
        kinds: dict[str, Any] = {"adapter": config.lora, "dtype": dtype, "rngs": rngs}
        self.gate = Projection("gate", d, wide, ("embed", "mlp"), **kinds)
        self.up = Projection("up", d, wide, ("embed", "mlp"), **kinds)
        self.down = Projection("down", wide, d, ("mlp", "embed"), **kinds)


# From queries, keys and values (rotated) to the attended values, and whatever the caller wants kept.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(config.width, eps=config.rms_eps, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.post_norm = RMSNorm(config.width, eps=config.rms_eps, rngs=rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T half"],
        sin: Float[Array, "B T half"],
        attend: Attend,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies attention and feed-forward; returns the residual stream and what `attend` kept."""
        keys = dict.fromkeys(PROJECTIONS)
        if key is not None:
            keys = dict(zip(PROJECTIONS, jax.random.split(key, len(PROJECTIONS)), strict=True))
        a, m = self.attention, self.mlp
        h = self.input_norm(x)
        q, k, v = a.q(h, keys["q"]), a.k(h, keys["k"]), a.v(h, keys["v"])
        h, kept = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + a.out(h, keys["out"])
        h = self.post_norm(x)
        gate, up = constrain(m.gate(h, keys["gate"]), *_WIDE), constrain(m.up(h, keys["up"]), *_WIDE)
        h = jax.nn.silu(gate) * up
        x = x + m.down(checkpoint_name(h, "mlp_hidden"), keys["down"])
        # The residual width stays whole on every device, whatever shards the kernels' "embed" axis.
        return constrain(x, "batch", "length", None), kept


Caches = tuple[KVCache, ...]  # one a layer


class Llama(nnx.Module):
    """The language model, from embedded columns to hidden states after the last norm."""

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: DTypeLike,
        remat: str = "none",
        attention: str = "xla",
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        """`remat` and `unroll` as in `nn.stack.run`, `attention` one of `nn.attention.IMPLEMENTATIONS`."""
        self.config, self.dtype, self.implementation = config, dtype, attention
        self.remat, self.unroll = remat, unroll
        self.embed = param(EMBED_INIT, rngs, (config.vocab, config.width), ("vocab", "embed"))
        self.layers = stack(lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.norm = RMSNorm(config.width, eps=config.rms_eps, rngs=rngs)
        self.head = param(kernel_init(1, 1), rngs, (config.width, config.vocab), ("embed", "vocab"))

    def embed_tokens(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Rows of the embedding table."""
        return lookup(self.embed[...], ids, self.dtype)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token, summed and returned in float32."""
        return project_to_vocab(hidden, self.head[...])

    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        positions: Int[Array, "B L"],
        segments: Int[Array, "B L"],
        key: jax.Array | None = None,
    ) -> Float[Array, "B L D"]:
        """Hidden states of whole rows, after the last norm.

        Args:
          x: embedded columns.
          positions: rotary position of each column.
          segments: a column sees itself and the earlier ones of its segment; 0 is padding.
          key: randomness of adapter dropout; None switches it off.
        """
        return self.together([(x, positions, segments)], key=key)[0]

    def together(
        self,
        rows: Sequence[tuple[Float[Array, "_ _ D"], Int[Array, "_ _"], Int[Array, "_ _"]]],
        *,
        key: jax.Array | None = None,
    ) -> list[Float[Array, "_ _ D"]]:
        """As calling the model with rows of each length, (x, positions, segments).

        Layer by layer: where weights are split over devices, each is gathered once for all lengths.
        """
        return self._whole(rows, key, keep=False)[0]

    def prefill(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        columns: int,
    ) -> tuple[Float[Array, "B T D"], Caches]:
        """As calling the model, and every layer's cache of `columns` columns with the first T filled."""
        (hidden,), ((ks, vs),) = self._whole([(x, positions, segments)], None, keep=True)
        empty = KVCache.zeros(x.shape[0], columns, self.config.kv_heads, self.config.head_dim, self.dtype)
        return hidden, tuple(empty.write(0, k, v) for k, v in zip(ks, vs, strict=True))

    def step(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        caches: Caches,
        column: Int[Array, ""],
        visible: Bool[Array, "B T S"],
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Caches]:
        """Hidden states of T new columns that see the caches, and the caches with them in it.

        The layers are walked one by one instead of scanned, so that no turn of a loop has to copy their part
        out of stacked weights and caches.

        Args:
          x: embedded columns, the same number for each row.
          positions: their rotary positions.
          caches: one of S columns for each layer.
          column: where in the caches the first new column goes.
          visible: which columns of the caches, the new ones among them, each new column sees.
          lengths: columns each row has after the step; matters to dynamic rotary scaling only.
        """
        cos, sin = rotation(self.config.rope, positions, self.config.head_dim, lengths)

        def attend(cache, q, k, v):
            grown = cache.write(column, k, v)
            return attention(q, *grown.read(), mask=visible), grown

        x = x.astype(self.dtype)
        new = []
        for block, cache in zip(unstack(self.layers), caches, strict=True):
            x, grown = block(x, cos, sin, functools.partial(attend, cache))
            new.append(grown)
        return self.norm(x), tuple(new)

    def unstacked(self) -> "Llama":
        """The same model with its layers in a list, for `step`: in a loop they are then sliced only once."""
        copy = jax.tree.map(lambda leaf: leaf, self)  # new Params, so that this model keeps its own
        copy.layers = nnx.List(unstack(self.layers))
        return copy

    def merged(self) -> "Llama":
        """The same model with its adapters added to the kernels, and none left."""
        copy = jax.tree.map(lambda leaf: leaf, self)  # new Params, so that this model keeps its own
        copy.config = dataclasses.replace(self.config, lora=None)
        for name in PROJECTIONS:
            projection = getattr(copy.layers.attention if name in ATTENTION else copy.layers.mlp, name)
            adapter = projection.lora
            if adapter is not None:
                projection.kernel[...] = lora.fold(
                    projection.kernel[...], adapter.a[...], adapter.b[...], adapter.config.scale
                )
                projection.lora = None
        return copy

    def _whole(self, rows, key, *, keep: bool):
        """Hidden states of whole rows; with `keep`, also the stacked keys and values of all layers."""
        rotations = [rotation(self.config.rope, positions, self.config.head_dim) for _, positions, _ in rows]
        keys = None if key is None else jax.random.split(key, self.config.depth)

        def attend(segments, q, k, v):
            q, k, v = constrain(q, *_HEADS), constrain(k, *_KV_HEADS), constrain(v, *_KV_HEADS)
            h = attention(q, k, v, causal=True, segments=segments, impl=self.implementation)
            return constrain(h, *_HEADS), ((k, v) if keep else None)

        def body(states, layer):
            block, key = layer
            done = []
            for number, (x, turns, (_, _, segments)) in enumerate(zip(states, rotations, rows, strict=True)):
                own = jax.random.fold_in(key, number) if key is not None and number else key
                done.append(block(x, *turns, functools.partial(attend, segments), own))
            return tuple(x for x, _ in done), tuple(kept for _, kept in done)

        states = tuple(constrain(x.astype(self.dtype), "batch", "length", None) for x, _, _ in rows)
        states, kept = run(body, states, (self.layers, keys), remat=self.remat, unroll=self.unroll)
        # Whole rows again: links are read from any column, and labels from the one before.
        return [constrain(self.norm(x), "batch", None, None) for x in states], kept


def project_to_vocab(hidden: Float[Array, "*B D"], head: Float[Array, "D V"]) -> Float[Array, "*B V"]:
    """Logits: the product in the dtype of the hidden states, the sum in float32."""
    return jnp.einsum("...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
