# SPDX-License-Identifier: Apache-2.0
"""The pose decoder, top down. The file of this folder to read first.

    picture -- Swin -- levels --+             +-- cells -- best cells: boxes --+
                                +-- encoder --+                learned queries +-- box layers --+
    class links -- vectors -----+             +-- classes                      best boxes       |
                                                                                                v
    keypoint links -- vectors --------------------------------------------------------- keypoint layers
                                                                                                |
                                                                              boxes, scores, keypoints

Levels, encoder, selection of cells and layers are Grounding DINO's. Source: official `modeling_unipose.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vllm2_jax.batch import Links, Weighted
from vllm2_jax.decoders.denoising import Draws, sees
from vllm2_jax.decoders.grounding_dino.classes import ClassEncoder
from vllm2_jax.decoders.grounding_dino.encoder import Encoder
from vllm2_jax.decoders.grounding_dino.pyramid import Levels
from vllm2_jax.decoders.grounding_dino.selection import Selection
from vllm2_jax.decoders.unipose import denoising
from vllm2_jax.decoders.unipose.box_decoder import find_boxes
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.criterion import Criterion
from vllm2_jax.decoders.unipose.decoder import Decoder
from vllm2_jax.decoders.unipose.denoising import Noise
from vllm2_jax.decoders.unipose.keypoint_decoder import choose, expand, find_keypoints
from vllm2_jax.decoders.unipose.layer import Crowd
from vllm2_jax.decoders.unipose.outputs import Boxes, Figures, Outputs, Poses
from vllm2_jax.decoders.unipose.postprocess import best
from vllm2_jax.decoders.unipose.sight import Sight, of_figures
from vllm2_jax.decoders.unipose.targets import Capacity, Picture, Truth, read_picture, read_truth
from vllm2_jax.nn.axes import constrain
from vllm2_jax.nn.dropout import keys
from vllm2_jax.nn.layers import param
from vllm2_jax.ops.keypoints import SIGMAS
from vllm2_jax.vision.pixels import frame
from vllm2_jax.vision.swin import Swin

KEYPOINTS = len(SIGMAS)  # the most a row may ask for


class UniPose(nnx.Module):
    """Finds objects of the classes, and their keypoints, that the links name."""

    def __init__(self, config: UniPoseConfig, *, link_width: int, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.width
        self.class_encoder = ClassEncoder(link_width, width, dtype=dtype, rngs=rngs)
        self.keypoint_encoder = ClassEncoder(link_width, width, dtype=dtype, rngs=rngs)
        self.backbone = Swin(config.backbone, dtype=dtype, remat=config.remat, rngs=rngs)
        self.levels = Levels(config.shared, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config.shared, dtype=dtype, rngs=rngs)
        self.selection = Selection(config.shared, dtype=dtype, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.queries = param(init, rngs, (config.queries, width), ("queries", "embed"))
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def loss(self, links: Links, targets: Mapping[str, Any], *, key: jax.Array) -> dict[str, Weighted]:
        """All loss terms, named as in `criterion.py`.

        Args:
          links: classes, then keypoints.
          targets: arrays as in `example`.
          key: drops, and disturbs boxes and classes for denoising.
        """
        picture, truth = read_picture(targets), read_truth(targets)
        if truth.valid.shape[1] > self.config.instances:
            raise ValueError(
                f"room for {truth.valid.shape[1]} objects, but only {self.config.instances} instances get "
                "keypoints; lower the task's capacity of boxes"
            )
        outputs = self.forward(links, picture, truth=truth, key=key)
        sigmas = jnp.asarray(SIGMAS)[picture.keypoint_ids]
        return Criterion(self.config.criterion, truth, sigmas)(outputs)

    def predict(self, links: Links, inputs: Mapping[str, Any], *, key: jax.Array | None = None) -> Poses:
        """The best instances of each row; `inputs` are targets, of which only the picture is read."""
        del key
        return best(self.forward(links, read_picture(inputs)))

    @staticmethod
    def example(rows: int, config: Capacity) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract targets."""
        return config.arrays(rows)

    def forward(
        self,
        links: Links,
        picture: Picture,
        *,
        truth: Truth | None = None,
        draws: Draws | None = None,
        key: jax.Array | None = None,
    ) -> Outputs:
        """All predictions.

        Args:
          links: K places a row; the last P, as many as `picture` has keypoint ids, are keypoints.
          picture: what to look at.
          truth: what denoising queries are made from; None is evaluation.
          draws: what is random about them; drawn from `key` if not given.
          key: drops at random; None drops nothing.

        Raises:
          ValueError: no room for a class or for a keypoint, or for more keypoints than there can be.
        """
        backbone, rest = keys(key, 2)
        pixels, inside = frame(picture.image, picture.size, self.dtype)
        features = self.backbone(constrain(pixels, "batch", None, None, None), key=backbone)
        keypoints = picture.keypoint_ids.shape[1]
        return self.look(links, keypoints, features, inside, truth=truth, draws=draws, key=rest)

    def look(
        self,
        links: Links,
        wanted: int,
        features: tuple[Float[Array, "B _h _w _c"], ...],
        inside: Bool[Array, "B H W"],
        *,
        truth: Truth | None = None,
        draws: Draws | None = None,
        key: jax.Array | None = None,
    ) -> Outputs:
        """`forward` from the backbone's maps.

        Args:
          wanted: how many of the links are keypoints.
          features: maps of the backbone.
          inside: pixels of the picture.
        """
        classes, keypoints = split(links, wanted)
        if self.config.faithful:
            keypoints = pad(keypoints, KEYPOINTS)  # free places are seen
        # One place more than there are classes: the embedding of no class, for denoising.
        text = self.class_encoder(pad(classes, classes.valid.shape[1] + 1))
        points = jnp.where(keypoints.valid[..., None], self.keypoint_encoder(keypoints), 0)

        drop = keys(key, 2)
        pyramid = self.levels(features, inside)
        cells, classes_seen = self.encoder(pyramid, text[:, :-1], classes.valid, drop[0])
        chosen = self.selection(cells, classes_seen, pyramid, classes.valid)

        noise = None
        if truth is not None and self.config.criterion.denoising:
            layout = denoising.lay_out(truth, self.config)
            if draws is None and drop[1] is not None:
                draws = denoising.draw(drop[1], layout, self.config)
            if draws is None:
                raise ValueError("denoising is random: give a key or what was drawn")
            noise = denoising.disturb(layout, draws, truth, text, self.config)
        scene = Crowd(
            cells,
            classes_seen,
            pyramid.valid,
            classes.valid,
            pyramid.ratios,
            mask=None,
            shapes=pyramid.shapes,
            sight=Sight(None if noise is None else sees(noise.layout, self.config.queries), None),
        )
        boxes, figures, denoised = self.decode(scene, chosen.boxes, points, keypoints.valid, noise)
        return Outputs(
            proposals=Boxes(chosen.logits, chosen.boxes),
            boxes=boxes,
            figures=dataclasses.replace(figures, keypoints=figures.keypoints[..., :wanted, :]),
            denoising=denoised,
            layout=None if noise is None else noise.layout,
            classes=classes.valid,
            keypoints=keypoints.valid[:, :wanted],
        )

    def decode(
        self,
        scene: Crowd,
        boxes: Float[Array, "B Q 4"],
        points: Float[Array, "B P W"],
        asked: Bool[Array, "B P"],
        noise: Noise | None,
    ) -> tuple[Boxes, Figures, Boxes | None]:
        """Box layers, then keypoint layers.

        Args:
          scene: what queries look at in the box layers.
          boxes: where they start.
          points: embeddings of keypoints, 0 where none is asked for.
          asked: which of them are.
          noise: denoising queries, which go in front.

        Returns:
          What the box layers say of the queries, the keypoint layers of the instances, and all of the
          denoising queries.
        """
        slots, decoder = scene.sight.slots, self.decoder
        table = self.queries[...].astype(self.dtype)
        x = jnp.broadcast_to(table, (len(boxes), *table.shape))
        references = jax.lax.stop_gradient(boxes)
        if noise is not None:
            x = jnp.concatenate([noise.content.astype(self.dtype), x], axis=1)
            references = jnp.concatenate([noise.boxes, references], axis=1)
        x, references, found = find_boxes(decoder, x, references, scene)
        _, chosen = choose(decoder, x, scene)
        x, references = expand(decoder, x, references, points, chosen, slots)
        sight = of_figures(scene.sight, asked, self.config.instances, faithful=self.config.faithful)
        scene = dataclasses.replace(scene, sight=sight)
        noise_found, figures = find_keypoints(decoder, x, references, scene)
        if noise is None:
            return found, figures, None
        of_noise = jax.tree.map(lambda a, b: jnp.concatenate([a[:, :, :slots], b]), found, noise_found)
        return jax.tree.map(lambda a: a[:, :, slots:], found), figures, of_noise


def split(links: Links, keypoints: int) -> tuple[Links, Links]:
    """Links of classes and links of keypoints.

    Raises:
      ValueError: one of the two kinds has no place, or there are more keypoints than sizes for them.
    """
    places = links.valid.shape[1]
    if not 0 < keypoints < places:
        raise ValueError(
            f"{places} links of which {keypoints} are keypoints: a class and a keypoint are needed"
        )
    if keypoints > KEYPOINTS:
        raise ValueError(f"{keypoints} keypoints, the decoder knows {KEYPOINTS} at most")
    classes = places - keypoints
    return (
        Links(links.states[:, :classes], links.valid[:, :classes]),
        Links(links.states[:, classes:], links.valid[:, classes:]),
    )


def pad(links: Links, places: int) -> Links:
    """With free places at the end."""
    room = places - links.valid.shape[1]
    return Links(
        jnp.pad(links.states, ((0, 0), (0, room), (0, 0), (0, 0))), jnp.pad(links.valid, ((0, 0), (0, room)))
    )
