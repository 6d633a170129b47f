# SPDX-License-Identifier: Apache-2.0
"""The bridge (official `vl_bridge`) from the tower's tokens to columns of the language model."""

import dataclasses
import math
import re

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vllm2_jax.nn.layers import ACTIVATIONS, LayerNorm, linear


@dataclasses.dataclass(frozen=True)
class BridgeConfig:
    """Which bridge, and its widths.

    Attributes:
      kind: `linear`; `mlp<n>x_gelu`, n dense layers with erf-GELU between them (7B: `mlp2x_gelu`); or
        `internvl_mlp`, a layer norm before two of them (26B).
      pixel_shuffle: merges 2 x 2 tokens into one of four times the width first.
      width_in: of the tower.
      width_out: of the language model.
    """

    kind: str = "mlp2x_gelu"
    pixel_shuffle: bool = False
    width_in: int = 1024
    width_out: int = 4096

    def __post_init__(self):
        if self.kind not in ("linear", "internvl_mlp") and not re.fullmatch(r"mlp[1-9]\d*x_gelu", self.kind):
            raise ValueError(f"bridge {self.kind!r} is none of linear, internvl_mlp, mlp<n>x_gelu")

    @property
    def depth(self) -> int:
        """Dense layers."""
        if self.kind.startswith("mlp"):
            return int(self.kind[3:].split("x")[0])
        return {"linear": 1, "internvl_mlp": 2}[self.kind]

    def tokens_per_tile(self, tokens: int) -> int:
        """Columns that a tile of `tokens` patches fills."""
        return tokens // 4 if self.pixel_shuffle else tokens


class Bridge(nnx.Module):
    """Tokens of the tower to embeddings of the language model."""

    def __init__(self, config: BridgeConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width_in * (4 if config.pixel_shuffle else 1)
        # Eps is PyTorch's default for a layer norm.
        self.norm = LayerNorm(width, eps=1e-5, rngs=rngs) if config.kind == "internvl_mlp" else None
        layers = []
        for i in range(config.depth):
            axes = ("embed", "mlp") if i == 0 else ("mlp", "embed")
            layers.append(linear(width, config.width_out, axes, dtype=dtype, rngs=rngs))
            width = config.width_out
        self.layers = nnx.List(layers)
        self.config = config

    def __call__(self, x: Float[Array, "N P V"]) -> Float[Array, "N I C"]:
        """Maps the patches of square tiles (without class token), row by row."""
        if self.config.pixel_shuffle:
            side = math.isqrt(x.shape[1])
            if side * side != x.shape[1]:
                raise ValueError(f"pixel shuffle needs square tiles, not {x.shape[1]} patches")
            x = pixel_shuffle(x.reshape(len(x), side, side, -1))
            x = x.reshape(len(x), -1, x.shape[-1])
        if self.norm is not None:
            x = self.norm(x)
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else ACTIVATIONS["gelu"](x))
        return x


def pixel_shuffle(x: Float[Array, "N H W V"]) -> Float[Array, "N H2 W2 4*V"]:
    """Each 2 x 2 block of tokens as one token: its four vectors one after the other, row by row.

    Raises:
      ValueError: an odd height or width.
    """
    n, h, w, v = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"pixel shuffle merges 2 x 2 tokens, a grid of {h} x {w} cannot be cut")
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, v).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, h // 2, w // 2, 4 * v)
