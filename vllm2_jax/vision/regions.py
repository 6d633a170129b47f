# SPDX-License-Identifier: Apache-2.0
"""The region encoder: a mask on a picture becomes one column of the language model.

The mask and the picture are embedded together and added to the tower's last three feature maps, level after
level; each level is pooled under the mask, and the mean over levels is mapped to the language model's width.

The official code pools by sampling the map at every pixel of the mask, at most 2304 of them drawn at random
(anew for each level, in evaluation too). Bilinear sampling at fixed pixels is linear in the map, so pooling
is a weight for each cell, and those weights are two small matrix products with the mask. With all pixels this
is the expectation of the official result, and equals it for masks of up to 2304 pixels. Source: official
`region_encoder.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from vllm2_jax.nn.layers import ACTIVATIONS, LayerNorm, linear, patch_conv
from vllm2_jax.vision.region_query import RegionQuery

POOLINGS = ("grid_sample", "mean", "cross_attn")

# These products are tiny, and a pixel's share of a cell needs more digits than bfloat16 has.
_EXACT = jax.lax.Precision.HIGHEST

# Pixel masks of regions: 0 or 1.
Masks = UInt8[Array, "*B S S"] | Bool[Array, "*B S S"] | Float[Array, "*B S S"]


@dataclasses.dataclass(frozen=True)
class RegionConfig:
    """Sizes and pooling.

    Attributes:
      hidden: width of the mask embedding.
      width: of the tower.
      width_out: of the language model.
      patch: pixels of a patch's side, even.
      pooling: `grid_sample` (released models), `mean` over cells, or `cross_attn` (one level only).
      samples: pixels drawn for each region and level where the caller gives a key; 0 always takes all pixels.
        The official code draws 2304.
    """

    hidden: int = 256
    width: int = 1024
    width_out: int = 4096
    patch: int = 14
    pooling: str = "grid_sample"
    samples: int = 0

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"region pooling {self.pooling!r} is none of {', '.join(POOLINGS)}")
        if self.patch % 2 or self.hidden % 4:
            raise ValueError(f"patch {self.patch} must be even and hidden {self.hidden} a multiple of 4")


class MaskEmbedding(nnx.Module):
    """Picture and mask, four channels, to a map of the tower's grid and width."""

    def __init__(self, config: RegionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        quarter, hidden = config.hidden // 4, config.hidden
        self.conv1 = patch_conv(4, quarter, config.patch // 2, bias=True, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(quarter, eps=1e-6, rngs=rngs)
        self.conv2 = patch_conv(quarter, hidden, 2, bias=True, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(hidden, eps=1e-6, rngs=rngs)
        self.out = linear(hidden, config.width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "N S S 4"]) -> Float[Array, "N h w V"]:
        """Two strided convolutions, each normed over channels, and a dense layer."""
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.norm1(self.conv1(x)))
        x = gelu(self.norm2(self.conv2(x)))
        return self.out(x)


class RegionEncoder(nnx.Module):
    """Masks and feature maps to region vectors."""

    def __init__(self, config: RegionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.mask_embedding = MaskEmbedding(config, dtype=dtype, rngs=rngs)
        query = config.pooling == "cross_attn"
        self.query = RegionQuery(config.width, dtype=dtype, rngs=rngs) if query else None
        self.out = linear(config.width, config.width_out, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def __call__(
        self,
        images: Float[Array, "N S S 3"],
        masks: UInt8[Array, "N S S"] | Bool[Array, "N S S"] | Float[Array, "N S S"],
        features: tuple[Float[Array, "N P V"], ...],
        *,
        sampled_masks: Float[Array, "levels N S S"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "N C"]:
        """One vector a region; an empty mask gives the bias of the last layer.

        Args:
          images: the normalised tile that each region lies on.
          masks: 1 inside the region.
          features: the tower's maps of those tiles, one a level, without class token.
          sampled_masks: 1 at the pixels to pool at each level, instead of all of `masks` (`grid_sample`).
          key: draws `config.samples` pixels a region and level, if that is not 0.

        Raises:
          ValueError: several levels with `cross_attn` (the official class fails there too), or
            `sampled_masks` with another pooling than `grid_sample`.
        """
        config, levels = self.config, len(features)
        if config.pooling != "grid_sample" and sampled_masks is not None:
            raise ValueError(f"sampled_masks are for the pooling grid_sample, this is {config.pooling}")
        masks = masks.astype(self.dtype)
        cells = self.mask_embedding(jnp.concatenate([images, masks[..., None]], axis=-1).astype(self.dtype))
        if self.query is not None:
            if levels != 1:
                raise ValueError(f"the pooling cross_attn takes one level, not {levels}")
            return self.out(self.query.pool(cells.reshape(features[0].shape) + features[0]))

        if config.pooling == "mean":
            weights = mean_weights(masks, config.patch)[None]
        else:
            if sampled_masks is None and key is not None and config.samples:
                sampled_masks = draw_pixels(masks, levels, config.samples, key)
            weights = sampling_weights(masks[None] if sampled_masks is None else sampled_masks, config.patch)
        weights = jnp.broadcast_to(weights, (levels, *weights.shape[1:])) / levels

        # Level l pools the embedding plus maps 1 to l, so map l is pooled by the levels from l on.
        later = jnp.cumsum(weights[::-1], axis=0)[::-1]
        pooled = _pool(later[0], cells)
        for weight, feature in zip(later, features, strict=True):
            pooled = pooled + _pool(weight, feature.reshape(cells.shape))
        return self.out(pooled.astype(self.dtype))


def _pool(weights: Float[Array, "N h w"], cells: Float[Array, "N h w V"]) -> Float[Array, "N V"]:
    return jnp.einsum("nhw,nhwv->nv", weights, cells.astype(jnp.float32), precision=_EXACT)


def sampling_weights(masks: Masks, patch: int) -> Float[Array, "*B h w"]:
    """Share of each cell in the mean over a mask's pixels, sampled bilinearly with zeros outside.

    A pixel in row r samples at r / S of the map and not at its centre: half a pixel off, as in the official
    code and so in the trained weights. Empty masks get zeros.
    """
    share = _bilinear(masks.shape[-1], masks.shape[-1] // patch)
    masks = masks.astype(jnp.float32)
    total = jnp.einsum("...yx,yh,xw->...hw", masks, share, share, precision=_EXACT)
    return total / jnp.maximum(masks.sum((-2, -1)), 1)[..., None, None]


def _bilinear(pixels: int, cells: int) -> np.ndarray:
    """[pixels, cells]: what each pixel takes from each cell along one side."""
    at = np.arange(pixels) / pixels * cells - 0.5
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


def mean_weights(masks: Float[Array, "N S S"], patch: int) -> Float[Array, "N h w"]:
    """Weights of the pooling `mean`: cells more than half inside, divided by the number of all cells."""
    side = masks.shape[-1] // patch
    inside = jax.image.resize(
        masks.astype(jnp.float32), (len(masks), side, side), method="linear", antialias=False
    )
    return (inside > 0.5) / jnp.float32(side * side)


def draw_pixels(
    masks: Float[Array, "N S S"], levels: int, samples: int, key: jax.Array
) -> Float[Array, "levels N S S"]:
    """At most `samples` pixels of each mask, uniformly and without replacement, anew for each level."""
    flat = masks.reshape(len(masks), -1)
    noise = jnp.where(flat > 0, jax.random.uniform(key, (levels, *flat.shape)), -1)
    order, index = jax.lax.top_k(noise, min(samples, flat.shape[-1]))
    # Not a threshold on the noise: with ties at the threshold that would draw too many.
    level, region = jnp.arange(levels)[:, None, None], jnp.arange(len(masks))[:, None]
    chosen = jnp.zeros(noise.shape).at[level, region, index].set(order >= 0)
    return chosen.reshape(levels, *masks.shape)
