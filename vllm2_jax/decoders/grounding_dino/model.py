# SPDX-License-Identifier: Apache-2.0
"""The grounding decoder, top down. The file of this folder to read first.

    picture -- Swin -- levels --+                  +-- cells --- best cells: boxes --+
                                +-- encoder -------+                                 +-- decoder -- classes,
    links -- class vectors -----+                  +-- classes       learned queries +              boxes, masks

Source: official `modeling_ov_grounding_dino_mask_dn.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vllm2_jax.batch import Links, Weighted
from vllm2_jax.decoders.grounding_dino.classes import ClassEncoder, class_logits
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.decoder import Decoder, Scene
from vllm2_jax.decoders.grounding_dino.encoder import Encoder
from vllm2_jax.decoders.grounding_dino.outputs import Denoising, Outputs, Predictions
from vllm2_jax.decoders.grounding_dino.pyramid import Levels, MaskFeatures
from vllm2_jax.decoders.grounding_dino.selection import ZEROS, Selection
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.dropout import keys
from vllm2_jax.nn.layers import param
from vllm2_jax.nn.mlp import MLP
from vllm2_jax.vision.pixels import frame
from vllm2_jax.vision.swin import Swin


class GroundingDINO(nnx.Module):
    """Finds what the links name: boxes, masks and scores."""

    def __init__(self, config: GroundingDINOConfig, *, link_width: int, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        width, masks = config.width, config.mask_width
        self.class_encoder = ClassEncoder(link_width, width, dtype=dtype, rngs=rngs)
        self.backbone = Swin(config.backbone, dtype=dtype, remat=config.remat, rngs=rngs)
        self.levels = Levels(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.mask_features = MaskFeatures(config, dtype=dtype, rngs=rngs)
        self.selection = Selection(config, dtype=dtype, rngs=rngs)
        self.queries = param(
            nnx.initializers.normal(1.0), rngs, (config.queries, width), ("queries", "embed")
        )
        self.query_masks = MLP((width, width, width, masks), dtype=dtype, rngs=rngs, last=ZEROS)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.mask_head = MLP((width, width, width, masks), dtype=dtype, rngs=rngs, last=ZEROS)
        self.config, self.dtype = config, dtype

    def forward(
        self,
        links: Links,
        image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
        size: Int[Array, "B 2"],
        *,
        dn: Denoising | None = None,
        key: jax.Array | None = None,
    ) -> Outputs:
        """All predictions for pictures of different sizes in one padded square.

        Args:
          links: one a class (or phrase, or prompt); K places a row.
          image: RGB with the picture at the top left; floats are normalised already.
          size: height and width of the picture inside.
          dn: queries made from ground truth.
          key: drops at random; None is evaluation.
        """
        pixels, inside = frame(image, size, self.dtype)
        return self.look(links, constrain(pixels, "batch", None, None, None), inside, dn=dn, key=key)

    def look(
        self,
        links: Links,
        pixels: Float[Array, "B H W 3"],
        inside: Bool[Array, "B H W"],
        *,
        dn: Denoising | None = None,
        key: jax.Array | None = None,
    ) -> Outputs:
        """`forward` from normalised pixels and any mask that says which of them belong to the picture."""
        drop = keys(key, 3)
        valid = links.valid
        features = self.backbone(pixels, key=drop[0])
        picture = self.levels(features, inside)
        cells, classes = self.encoder(picture, self.class_encoder(links), valid, drop[1])
        mask_features = self.mask_features(features[0], cells, picture.shapes)
        chosen = self.selection(cells, classes, picture, valid)
        table = jnp.broadcast_to(self.queries[...], (len(cells), *self.queries.shape)).astype(self.dtype)
        # The encoder's masks come from the learned queries, not from the chosen cells, as in the official code.
        first = Predictions(chosen.logits, chosen.boxes, self.query_masks(table))

        content, boxes, mask = table, chosen.boxes, None
        if dn is not None:
            content = jnp.concatenate([dn.content.astype(self.dtype), content], axis=1)
            boxes = jnp.concatenate([dn.boxes.astype(jnp.float32), boxes], axis=1)
            mask = jnp.broadcast_to(dn.mask, (len(cells), *dn.mask.shape[1:]))
        scene = Scene(cells, classes, picture.valid, valid, picture.ratios, mask, picture.shapes)
        hidden, boxes = self.decoder(content, boxes, scene, drop[2])
        layers = Predictions(
            logits=class_logits(hidden, classes, valid),
            boxes=self.decoder.move(hidden, boxes[:-1]),
            masks=self.mask_head(hidden),
        )
        count = 0 if dn is None else dn.content.shape[1]
        noisy = None if dn is None else jax.tree.map(lambda x: x[:, :, :count], layers)
        return Outputs(
            layers=jax.tree.map(lambda x: x[:, :, count:], layers),
            denoising=noisy,
            encoder=first,
            mask_features=mask_features,
            classes=valid,
        )
