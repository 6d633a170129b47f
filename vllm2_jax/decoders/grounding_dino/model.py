# SPDX-License-Identifier: Apache-2.0
"""The grounding decoder, top down. The file of this folder to read first.

    picture -- Swin -- levels --+             +-- cells -- best cells: boxes --+-- decoder -- scores, boxes,
                                +-- encoder --+                learned queries +              masks
    links -- class vectors -----+             +-- classes

Source: official `modeling_ov_grounding_dino_mask_dn.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vllm2_jax.batch import Links, Weighted
from vllm2_jax.decoders.grounding_dino import criterion as criteria
from vllm2_jax.decoders.grounding_dino import denoising
from vllm2_jax.decoders.grounding_dino.classes import ClassEncoder, class_logits
from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.decoder import Decoder, Scene
from vllm2_jax.decoders.grounding_dino.encoder import Encoder
from vllm2_jax.decoders.grounding_dino.outputs import Denoising, Outputs, Predictions
from vllm2_jax.decoders.grounding_dino.postprocess import Found, best
from vllm2_jax.decoders.grounding_dino.pyramid import Levels, MaskFeatures
from vllm2_jax.decoders.grounding_dino.selection import ZEROS, Chosen, Selection
from vllm2_jax.decoders.grounding_dino.targets import Capacity, read_picture, read_truth
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

    def loss(self, links: Links, targets: Mapping[str, Any], *, key: jax.Array) -> dict[str, Weighted]:
        """All loss terms, named as in `criterion.py`.

        Args:
          links: what is asked for.
          targets: arrays as in `example`.
          key: drops, disturbs boxes and classes for denoising, and picks the points where masks are compared.
        """
        picture, truth = read_picture(targets), read_truth(targets)
        drops, noises, places = jax.random.split(key, 3)
        layout = dn = None
        if self.config.criterion.denoising:
            layout = denoising.lay_out(truth, self.config)
            draws = denoising.draw(noises, layout, links.valid, self.config)
            dn = denoising.disturb(layout, draws, truth, self.class_encoder(links), self.config)
        outputs = self.forward(links, picture.image, picture.size, dn=dn, key=drops)
        criterion = self.config.criterion
        points = criteria.draw(places, len(picture.image), criterion)
        return criteria.Criterion(criterion, truth)(outputs, points, layout)

    def predict(self, links: Links, inputs: Mapping[str, Any], *, key: jax.Array | None = None) -> Found:
        """What the links name, best first; `inputs` are targets, of which only the picture is read."""
        del key
        picture = read_picture(inputs)
        return best(self.forward(links, picture.image, picture.size), self.config.detections)

    @staticmethod
    def example(rows: int, config: Capacity) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract targets."""
        return config.arrays(rows)

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
        drop = keys(key, 2)
        scene, chosen, mask_features = self.encode(links, pixels, inside, key=drop[0])
        content, boxes = self.learned(len(pixels)), chosen.boxes
        # As in the official code, these masks come from the learned queries, not from the chosen cells.
        first = Predictions(chosen.logits, chosen.boxes, self.query_masks(content))
        if dn is not None:
            content = jnp.concatenate([dn.content.astype(self.dtype), content], axis=1)
            boxes = jnp.concatenate([dn.boxes.astype(jnp.float32), boxes], axis=1)
            scene = dataclasses.replace(
                scene, mask=jnp.broadcast_to(dn.mask, (len(boxes), *dn.mask.shape[1:]))
            )
        hidden, boxes = self.decoder(content, boxes, scene, drop[1])
        layers = Predictions(
            logits=class_logits(hidden, scene.classes, links.valid),
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
            classes=links.valid,
        )

    def encode(
        self,
        links: Links,
        pixels: Float[Array, "B H W 3"],
        inside: Bool[Array, "B H W"],
        *,
        key: jax.Array | None = None,
    ) -> tuple[Scene, Chosen, Float[Array, "B h w M"]]:
        """What the decoder looks at, where its queries start, and the mask features."""
        drop = keys(key, 2)
        features = self.backbone(pixels, key=drop[0])
        picture = self.levels(features, inside)
        cells, classes = self.encoder(picture, self.class_encoder(links), links.valid, drop[1])
        scene = Scene(cells, classes, picture.valid, links.valid, picture.ratios, None, picture.shapes)
        chosen = self.selection(cells, classes, picture, links.valid)
        return scene, chosen, self.mask_features(features[0], cells, picture.shapes)

    def learned(self, rows: int) -> Float[Array, "{rows} Q W"]:
        """The learned queries, the same for every row."""
        return jnp.broadcast_to(self.queries[...].astype(self.dtype), (rows, *self.queries.shape))
