# SPDX-License-Identifier: Apache-2.0
"""The encoder: in every layer cells and classes look at each other, then each at their own kind."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vllm2_jax.decoders.grounding_dino.classes import positions, tiled, visible
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.pyramid import EPS, Pyramid
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.deformable import DeformableAttention
from vllm2_jax.nn.dropout import drop_path, dropout, keys
from vllm2_jax.nn.layers import LayerNorm, einsum, param
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.nn.multihead import MultiHeadAttention
from vllm2_jax.nn.sine import sine
from vllm2_jax.nn.stack import run, stack
from vllm2_jax.ops.levels import references


class Fusion(nnx.Module):
    """Cells read the classes and classes read the cells, by one matrix of scores.

    What is read is added, times a learned gain that starts near 0, to the *normalised* cells and classes, not
    to the ones before the norm (official `BiMultiHeadAttention`, 1090).

    A head is as wide as a cell, and there are far fewer classes than cells: what the official code multiplies
    with all cells (keys, values, outputs: arrays of 13,000 cells x 4 heads x 256) is multiplied with the
    classes' side here. The products associate, so the result is the same.
    """

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, heads = config.width, config.encoder_heads // 2
        head = config.encoder_mlp // 2 // heads

        def into_heads() -> nnx.Einsum:
            axes = ("embed", "heads", "head_dim")
            return einsum("btd,dhk->bthk", (width, heads, head), axes, inputs=1, dtype=dtype, rngs=rngs)

        def out_of_heads() -> nnx.Einsum:
            axes = ("heads", "head_dim", "embed")
            return einsum("bthk,hkd->btd", (heads, head, width), axes, inputs=2, dtype=dtype, rngs=rngs)

        def gain() -> nnx.Param:
            return param(nnx.initializers.constant(1e-4), rngs, (width,), ("embed",))

        self.cell_norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.class_norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.cell_key, self.class_key = into_heads(), into_heads()
        self.cell_value, self.class_value = into_heads(), into_heads()
        self.cell_out, self.class_out = out_of_heads(), out_of_heads()
        self.cell_gain, self.class_gain = gain(), gain()
        self.drop_path, self.faithful, self.scale = config.drop_path, config.faithful, head**-0.5

    def weights(
        self,
        cells: Float[Array, "B S W"],
        classes: Float[Array, "B K W"],
        valid_cells: Bool[Array, "B S"],
        valid_classes: Bool[Array, "B K"],
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """How much each cell reads of every class, and each class of every cell, from normed inputs.

        A row without any class reads all places alike. The official scores are clamped to +-50,000 around
        their maximum, which only float16 could notice.
        """
        kernel, bias = weights_of(self.cell_key)
        key = self.class_key(classes) * jnp.asarray(self.scale, cells.dtype)
        scores = jnp.einsum(
            "bsw,bkhw->bshk",
            cells,
            jnp.einsum("bkhd,whd->bkhw", key, kernel),
            preferred_element_type=jnp.float32,
        )
        scores = scores + jnp.einsum("bkhd,hd->bhk", key, bias)[:, None].astype(jnp.float32)
        least = float(jnp.finfo(jnp.float32).min)
        if self.faithful:
            # The maximum over all rows hands the NaN of a row without classes to the others.
            scores, least = scores - jax.lax.stop_gradient(scores.max()), -jnp.inf
        by_cell = jnp.where(valid_classes[:, None, None], scores, least)
        by_class = jnp.where(valid_cells[:, :, None, None], scores, least)
        return jax.nn.softmax(by_cell, axis=3), jax.nn.softmax(by_class, axis=1)

    def __call__(
        self,
        cells: Float[Array, "B S W"],
        classes: Float[Array, "B K W"],
        valid_cells: Bool[Array, "B S"],
        valid_classes: Bool[Array, "B K"],
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S W"], Float[Array, "B K W"]]:
        """Both after the exchange; `key` draws which rows skip which side of it."""
        cells, classes = self.cell_norm(cells), self.class_norm(classes)
        of_classes, of_cells = (
            x.astype(cells.dtype) for x in self.weights(cells, classes, valid_cells, valid_classes)
        )
        kernel, bias = weights_of(self.cell_out)
        brought = jnp.einsum("bkhd,hdw->bkhw", self.class_value(classes), kernel)
        to_cells = jnp.einsum("bshk,bkhw->bsw", of_classes, brought) + bias
        kernel, bias = weights_of(self.cell_value)
        read = jnp.einsum("bshk,bsw->bkhw", of_cells, cells)
        # The weights of a class add up to 1, so the bias may come afterwards.
        to_classes = self.class_out(jnp.einsum("bkhw,whd->bkhd", read, kernel) + bias)
        first, second = keys(key, 2)
        to_cells = self.cell_gain[...].astype(cells.dtype) * to_cells
        to_classes = self.class_gain[...].astype(cells.dtype) * to_classes
        return (
            cells + drop_path(to_cells, self.drop_path, first),
            classes + drop_path(to_classes, self.drop_path, second),
        )


def weights_of(layer: nnx.Einsum) -> tuple[Array, Array]:
    """Kernel and bias of a layer that has one, in the precision that it computes in."""
    assert layer.bias is not None
    return layer.kernel[...].astype(layer.dtype), layer.bias[...].astype(layer.dtype)


class ClassLayer(nnx.Module):
    """Classes look at each other: a post-norm transformer layer (official `TextEnhancerLayer`)."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, heads = config.width, config.encoder_heads // 2
        self.attention = MultiHeadAttention(width, heads, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(width, eps=EPS, rngs=rngs)
        self.mlp = MLP((width, config.encoder_mlp // 2, width), dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=EPS, rngs=rngs)
        self.heads, self.faithful = heads, config.faithful

    def __call__(
        self, classes: Float[Array, "B K W"], places: Float[Array, "B K W"], mask: Bool[Array, "B K K"]
    ) -> Float[Array, "B K W"]:
        """`places` are the embedded positions, `mask` says which class sees which."""
        query = classes + places
        heads_mask = tiled(mask, self.heads) if self.faithful else mask
        classes = self.norm1(classes + self.attention(query, query, classes, heads_mask))
        return self.norm2(classes + self.mlp(classes))


class CellLayer(nnx.Module):
    """Cells look at a few points around them on all levels."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width
        self.attention = DeformableAttention(
            width, config.encoder_heads, config.levels, config.encoder_points, dtype=dtype, rngs=rngs
        )
        self.norm1 = LayerNorm(width, eps=EPS, rngs=rngs)
        self.mlp = MLP((width, config.encoder_mlp, width), dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=EPS, rngs=rngs)
        self.rate = config.dropout

    def __call__(
        self, cells: Float[Array, "B S W"], picture: Pyramid, key: jax.Array | None = None
    ) -> Float[Array, "B S W"]:
        """`picture` says where the cells are; `key` drops."""
        first, second = keys(key, 2)
        seen = self.attention(
            cells + picture.positions,
            cells,
            picture.valid,
            references(picture.shapes, picture.ratios),
            picture.shapes,
        )
        cells = self.norm1(cells + dropout(seen, self.rate, first))
        return self.norm2(cells + dropout(self.mlp(cells), self.rate, second))


class EncoderLayer(nnx.Module):
    """Fusion, then both kinds by themselves."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fusion = Fusion(config, dtype=dtype, rngs=rngs)
        self.classes = ClassLayer(config, dtype=dtype, rngs=rngs)
        self.cells = CellLayer(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        cells: Float[Array, "B S W"],
        classes: Float[Array, "B K W"],
        picture: Pyramid,
        valid_classes: Bool[Array, "B K"],
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S W"], Float[Array, "B K W"]]:
        """Cells and classes after the layer; of `picture` the cells themselves are not read."""
        first, second = keys(key, 2)
        cells, classes = self.fusion(cells, classes, picture.valid, valid_classes, first)
        places = sine(positions(valid_classes), classes.shape[-1]).astype(classes.dtype)
        classes = self.classes(classes, places, visible(valid_classes))
        cells = self.cells(cells, picture, second)
        return constrain(cells, "batch", None, None), constrain(classes, "batch", None, None)


class Encoder(nnx.Module):
    """All layers, as one stacked module."""

    def __init__(self, config: GroundingDINOConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layers = stack(
            lambda rngs: EncoderLayer(config, dtype=dtype, rngs=rngs), config.encoder_layers, rngs
        )
        self.depth, self.remat = config.encoder_layers, config.remat

    def __call__(
        self,
        picture: Pyramid,
        classes: Float[Array, "B K W"],
        valid_classes: Bool[Array, "B K"],
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S W"], Float[Array, "B K W"]]:
        """Cells and classes after the last layer."""

        def body(carry, x):
            layer, key = x
            return layer(*carry, picture, valid_classes, key), None

        drops = None if key is None else jax.random.split(key, self.depth)
        out, _ = run(body, (picture.cells, classes), (self.layers, drops), remat=self.remat)
        return out
