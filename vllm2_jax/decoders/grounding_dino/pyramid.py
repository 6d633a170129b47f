# SPDX-License-Identifier: Apache-2.0
"""Around the backbone: its maps as cells of one width, and the map from which masks are read."""

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.nn.layers import GroupNorm, conv3, linear, param
from vllm2_jax.nn.sine import sine_2d
from vllm2_jax.ops import levels
from vllm2_jax.ops.levels import Shapes

EPS = 1e-5  # of all norms
POINTWISE = ("conv_in", "conv_out")  # a 1x1 convolution is a dense layer on channels


@struct.dataclass
class Pyramid:
    """The picture for encoder and decoder: S cells in L levels, one after the other, finest first.

    Attributes:
      cells: what the backbone saw.
      positions: where, in the picture and in the levels.
      masks: of each level, True inside the picture.
    """

    cells: Float[Array, "B S W"]
    positions: Float[Array, "B S W"]
    masks: list[Bool[Array, "B _h _w"]]

    @property
    def shapes(self) -> Shapes:
        """(height, width) of the levels."""
        return tuple((mask.shape[1], mask.shape[2]) for mask in self.masks)

    @property
    def valid(self) -> Bool[Array, "B S"]:
        """Cells inside the picture."""
        return levels.flatten(self.masks)

    @property
    def ratios(self) -> Float[Array, "B L 2"]:
        """Share of each level's width and height that the picture fills."""
        return levels.valid_ratios(self.masks)


class Levels(nnx.Module):
    """The backbone's last three maps, and one more at half the last one's size, projected to one width.

    The norms count the padding around a picture, as the official ones do (weights were trained so).
    """

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, channels = config.width, config.backbone.channels
        self.projections = nnx.List(
            [linear(c, width, POINTWISE, dtype=dtype, rngs=rngs) for c in channels[-3:]]
        )
        extra = config.levels > 3
        self.extra = conv3(channels[-1], width, stride=2, dtype=dtype, rngs=rngs) if extra else None
        self.norms = nnx.List([GroupNorm(width, eps=EPS, rngs=rngs) for _ in range(config.levels)])
        self.level = param(nnx.initializers.normal(1.0), rngs, (config.levels, width), (None, "embed"))
        self.temperature, self.dtype = config.temperature, dtype

    def maps(self, features: tuple[Float[Array, "B _h _w _c"], ...]) -> list[Float[Array, "B _h _w W"]]:
        """All levels as maps; the extra one comes from the backbone's last map itself."""
        out = [layer(x) for layer, x in zip(self.projections, features[-3:], strict=True)]
        if self.extra is not None:
            out.append(self.extra(features[-1]))
        return [norm(x) for norm, x in zip(self.norms, out, strict=True)]

    def __call__(
        self, features: tuple[Float[Array, "B _h _w _c"], ...], inside: Bool[Array, "B H W"]
    ) -> Pyramid:
        """From the backbone's maps and the mask of the picture's pixels."""
        maps = self.maps(features)
        masks = [levels.shrink(inside, (x.shape[1], x.shape[2])) for x in maps]
        width, level = self.level.shape[-1], self.level[...].astype(self.dtype)
        places = [
            sine_2d(mask, width, temperature_h=self.temperature, temperature_w=self.temperature)
            for mask in masks
        ]
        positions = [place.astype(self.dtype) + level[i] for i, place in enumerate(places)]
        return Pyramid(levels.flatten(maps), levels.flatten(positions), masks)


class MaskFeatures(nnx.Module):
    """Vectors at stride 4 whose product with a query's mask embedding is its mask: an FPN of one step."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width
        self.lateral = linear(
            config.backbone.channels[0], width, POINTWISE, bias=False, dtype=dtype, rngs=rngs
        )
        self.lateral_norm = GroupNorm(width, eps=EPS, rngs=rngs)
        self.conv = conv3(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.conv_norm = GroupNorm(width, eps=EPS, rngs=rngs)
        self.out = linear(width, config.mask_width, POINTWISE, dtype=dtype, rngs=rngs)

    def merge(
        self, finest: Float[Array, "B h w C"], level: Float[Array, "B _h _w W"]
    ) -> tuple[Float[Array, "B h w W"], Float[Array, "B h w W"]]:
        """The projected finest map, and its sum with the enlarged level after the convolution."""
        lateral = self.lateral_norm(self.lateral(finest))
        # Enlarging needs no smoothing; edges are clamped and centres half a cell in, as in PyTorch.
        enlarged = jax.image.resize(level.astype(jnp.float32), lateral.shape, "bilinear")
        summed = lateral + enlarged.astype(lateral.dtype)
        return lateral, jax.nn.relu(self.conv_norm(self.conv(summed)))

    def __call__(
        self, finest: Float[Array, "B h w C"], cells: Float[Array, "B S W"], shapes: Shapes
    ) -> Float[Array, "B h w M"]:
        """From the backbone's first map and level 0 of the encoder's cells."""
        h, w = shapes[0]
        level = cells[:, : h * w].reshape(len(cells), h, w, -1)
        return self.out(self.merge(finest, level)[1])
