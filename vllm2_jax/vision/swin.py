# SPDX-License-Identifier: Apache-2.0
"""Swin, the backbone of both detectors: maps at strides 4 to 32 by attention inside shifted windows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.dropout import drop_path, keys
from vllm2_jax.nn.layers import LayerNorm, einsum, linear, param, patch_conv
from vllm2_jax.nn.stack import rematted
from vllm2_jax.vision.vit import Mlp

DROPS = ("attention", "linear")


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes; the defaults are Swin-T.

    Attributes:
      width: channels of the first stage; every further one has twice as many on half the side.
      depths, heads: of the stages.
      window: cells of a window's side.
      mlp_ratio: width of the feed-forward layers in widths of the stage.
      patch: pixels of a cell's side in the first stage.
      stages: which stages come out, each through its own norm; 0 is stride 4.
      eps: of all layer norms.
      drop_path: chance that a picture skips a branch in training.
      drop: "attention" drops attention only, alike in all blocks (Grounding DINO: transformers' Swin computes
        a schedule but never uses it); "linear" drops both branches, from 0 in the first block to `drop_path`
        in the last (UniPose).
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    patch: int = 4
    stages: tuple[int, ...] = (0, 1, 2, 3)
    eps: float = 1e-5
    drop_path: float = 0.1
    drop: str = "attention"

    def __post_init__(self):
        if self.drop not in DROPS:
            raise ValueError(f"drop={self.drop!r} is none of {', '.join(DROPS)}")
        if len(self.heads) != len(self.depths) or not set(self.stages) <= set(range(len(self.depths))):
            raise ValueError(f"heads {self.heads} and stages {self.stages} do not fit depths {self.depths}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of all stages."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that come out."""
        return tuple(self.widths[stage] for stage in self.stages)

    def drop_rates(self, stage: int) -> list[tuple[float, float]]:
        """Chance to drop (attention, feed-forward) in each block of a stage."""
        if self.drop == "attention":
            return [(self.drop_path, 0.0)] * self.depths[stage]
        rates = np.linspace(0, self.drop_path, sum(self.depths)).tolist()
        first = sum(self.depths[:stage])
        return [(rate, rate) for rate in rates[first : first + self.depths[stage]]]


# Pretrained sizes; "base" and "large" are those for pictures of 384 pixels.
SWIN = {
    "tiny": SwinConfig(),
    "base": SwinConfig(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    "large": SwinConfig(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
}


class WindowAttention(nnx.Module):
    """Attention among the cells of a window, with a learned bias for every distance."""

    def __init__(self, width: int, heads: int, window: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"the stage's width {width} is not a multiple of its {heads} heads")
        shape, axes = (width, heads, width // heads), ("embed", "heads", "head_dim")

        def into_heads() -> nnx.Einsum:
            return einsum("bntd,dhk->bnthk", shape, axes, inputs=1, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = into_heads(), into_heads(), into_heads()
        self.out = einsum(
            "bnthk,hkd->bntd", (*shape[1:], width), (*axes[1:], "embed"), inputs=2, dtype=dtype, rngs=rngs
        )
        init = nnx.initializers.truncated_normal(0.02)
        self.bias = param(init, rngs, ((2 * window - 1) ** 2, heads), (None, "heads"))
        self.window = window

    def __call__(
        self, x: Float[Array, "B N T W"], same: Bool[Array, "N T T"] | None
    ) -> Float[Array, "B N T W"]:
        """N windows of T cells a picture.

        Args:
          same: whether two cells of a window are neighbours in the picture; if not, their score is lowered by
            100 (not by infinity, as in the official code). None if all are.
        """
        q = self.q(x) * jnp.asarray(self.q.kernel_shape[-1] ** -0.5, x.dtype)
        scores = jnp.einsum("bnthk,bnshk->bnhts", q, self.k(x), preferred_element_type=jnp.float32)
        scores += self.bias[...][distances(self.window)].transpose(2, 0, 1)
        if same is not None:
            scores += jnp.where(same, 0.0, -100.0)[:, None]
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        out = jnp.einsum("bnhts,bnshk->bnthk", weights, self.v(x))
        return self.out(checkpoint_name(out, "attention_out"))


class Block(nnx.Module):
    """Attention inside windows (every second block moves them by half a window), then feed-forward."""

    def __init__(self, config: SwinConfig, stage: int, index: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.widths[stage]
        self.norm1 = LayerNorm(width, eps=config.eps, rngs=rngs)
        self.attention = WindowAttention(width, config.heads[stage], config.window, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=config.eps, rngs=rngs)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), "gelu", dtype=dtype, rngs=rngs)
        self.window, self.shift = config.window, index % 2 * (config.window // 2)
        self.rates = config.drop_rates(stage)[index]

    def __call__(self, x: Float[Array, "B H W C"], key: jax.Array | None) -> Float[Array, "B H W C"]:
        """Each branch is added to the residual stream; `key` draws which rows skip it.

        Maps are padded with zeros to whole windows *after* the norm; padding takes part in the attention.
        """
        batch, height, width, channels = x.shape
        side, shift = self.window, self.shift
        first, second = keys(key, 2)
        cells = jnp.pad(self.norm1(x), ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        padded = (cells.shape[1], cells.shape[2])
        if shift:
            cells = jnp.roll(cells, (-shift, -shift), axis=(1, 2))
        same = same_region(padded, side, shift) if shift else None
        cells = from_windows(self.attention(to_windows(cells, side), same), padded)
        if shift:
            cells = jnp.roll(cells, (shift, shift), axis=(1, 2))
        x = x + drop_path(cells[:, :height, :width], self.rates[0], first)
        tokens = self.norm2(x).reshape(batch, -1, channels)
        x = x + drop_path(self.mlp(tokens).reshape(x.shape), self.rates[1], second)
        return constrain(x, "batch", None, None, None)


class Stage(nnx.Module):
    """Merging of 2 x 2 cells into one (not in the first stage), then blocks."""

    def __init__(self, config: SwinConfig, stage: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.widths[stage]
        merges = stage > 0
        self.merge_norm = LayerNorm(2 * width, eps=config.eps, rngs=rngs) if merges else None
        axes = ("embed", None)
        self.merge = linear(2 * width, width, axes, bias=False, dtype=dtype, rngs=rngs) if merges else None
        self.blocks = nnx.List(
            [Block(config, stage, i, dtype=dtype, rngs=rngs) for i in range(config.depths[stage])]
        )
        wanted = stage in config.stages
        self.norm = LayerNorm(width, eps=config.eps, rngs=rngs) if wanted else None

    def __call__(
        self, x: Float[Array, "B H W C"], *, key: jax.Array | None, remat: str
    ) -> Float[Array, "B h w D"]:
        """The residual stream; `norm` is for the map that comes out."""
        if self.merge is not None and self.merge_norm is not None:
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = self.merge(self.merge_norm(jnp.concatenate(corners, axis=-1)))
        apply = rematted(Block.__call__, remat)
        for block, drop in zip(self.blocks, keys(key, len(self.blocks)), strict=True):
            x = apply(block, x, drop)
        return x


class Swin(nnx.Module):
    """Pictures of any size to the maps of the wanted stages, finest first."""

    def __init__(self, config: SwinConfig, *, dtype: DTypeLike, remat: str = "none", rngs: nnx.Rngs):
        # The zeros around a picture become this bias. Were it 0 at first, every norm over them would enlarge
        # their gradient 1 / sqrt(eps) times, to infinity after a few.
        bias = nnx.initializers.normal(0.1)
        self.patches = patch_conv(
            3, config.width, config.patch, bias=True, bias_init=bias, dtype=dtype, rngs=rngs
        )
        self.norm = LayerNorm(config.width, eps=config.eps, rngs=rngs)
        stages = range(1 + max(config.stages))
        self.stages = nnx.List([Stage(config, stage, dtype=dtype, rngs=rngs) for stage in stages])
        self.config, self.dtype, self.remat = config, dtype, remat

    def __call__(
        self, x: Float[Array, "B H W 3"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B _h _w _c"], ...]:
        """Each map in `config.stages`, normed, channels last; sides are rounded up at every halving.

        Args:
          x: normalised pictures; padding between pictures of different size is seen like any other pixels.
          key: drops branches at random; None in evaluation.
        """
        patch = self.config.patch
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % patch), (0, -x.shape[2] % patch), (0, 0)))
        x = self.norm(self.patches(x.astype(self.dtype)))
        maps = []
        for stage, drop in zip(self.stages, keys(key, len(self.stages)), strict=True):
            x = stage(x, key=drop, remat=self.remat)
            if stage.norm is not None:
                maps.append(stage.norm(x))
        return tuple(maps)


def to_windows(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B N T C"]:
    """Cuts maps into windows row by row; their cells row by row as well."""
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(b, -1, side * side, c)


def from_windows(x: Float[Array, "B N T C"], shape: tuple[int, int]) -> Float[Array, "B H W C"]:
    """The inverse of `to_windows` for a map of this (height, width)."""
    side = int(x.shape[2] ** 0.5)
    h, w = shape[0] // side, shape[1] // side
    return x.reshape(len(x), h, w, side, side, -1).swapaxes(2, 3).reshape(len(x), *shape, x.shape[-1])


def distances(window: int) -> np.ndarray:
    """Row of the bias table for every pair of cells, [T, T]: by rows apart, then columns apart."""
    y, x = np.divmod(np.arange(window * window), window)
    rows, columns = (at[:, None] - at + window - 1 for at in (y, x))
    return rows * (2 * window - 1) + columns


def same_region(shape: tuple[int, int], window: int, shift: int) -> Bool[Array, "N T T"]:
    """Whether two cells of a window lie side by side before the map was rolled by `shift`.

    Computed where it is used: as constants the masks of a Swin-T would be 32 MB of a program at 1344 pixels.
    """

    def label(size: int) -> Int[Array, " size"]:
        at = jnp.arange(size)
        return (at >= size - window).astype(jnp.int32) + (at >= size - shift)

    labels = 3 * label(shape[0])[:, None] + label(shape[1])
    cut = labels.reshape(shape[0] // window, window, shape[1] // window, window)
    cells = cut.swapaxes(1, 2).reshape(-1, window * window)
    return cells[:, :, None] == cells[:, None]
