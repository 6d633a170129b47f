# SPDX-License-Identifier: Apache-2.0
"""`[EDIT]`: a picture changed as a conversation asks. Source: official `modeling_instruct_pix2pix.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vllm2_jax.batch import Links, Weighted
from vllm2_jax.decoders.diffusion.config import PainterConfig
from vllm2_jax.decoders.diffusion.painter import (
    Draws,
    Painter,
    apart,
    as_bytes,
    for_links,
    row_keys,
    side_by_side,
)
from vllm2_jax.decoders.diffusion.samplers import Predict
from vllm2_jax.decoders.diffusion.targets import Request, Targets, example, read_request


class InstructPix2Pix(Painter):
    """InstructPix2Pix that listens to a super link: the latents of the picture to edit enter the UNet too."""

    edits = True

    def noise_losses(self, links: Links, targets: Targets, draws: Draws) -> dict[str, Weighted]:
        """The losses for given draws, one or more a link; targets are those of the N = B * K links."""
        states, valid = self.text_states(links)
        latents = self.latents(targets, draws)
        x = jnp.concatenate([self.noisy(latents, draws), self.dropped_source(targets, draws)], axis=-1)
        return self.losses(x, latents, states, valid, targets, draws)

    def dropped_source(self, targets: Targets, draws: Draws) -> Float[Array, "B h w L"]:
        """The picture to edit as the UNet sees it in training.

        Rows whose draw is below r lose their text only, up to 2 r both, up to 3 r the picture only.
        """
        rate, source = self.config.drop_rate, self.source(self.moments(targets.input, targets.input_moments))
        source = for_links(source, len(draws.time) // len(source))
        drop = (draws.drop >= rate) & (draws.drop < 3 * rate)
        return jnp.where(drop[:, None, None, None], 0, source)

    def source(self, moments: Float[Array, "N h w M"]) -> Float[Array, "N h w L"]:
        """Latents of the picture to edit: their means and, unlike those with noise, not scaled."""
        return moments[..., : self.config.vae.latent]

    def predict(self, links: Links, inputs: Any, *, key: jax.Array) -> UInt8[Array, "B K H W 3"]:
        """An edited picture for every link, those that are not valid included.

        Args:
          links: B rows with K places for links.
          inputs: a `targets.Request`, or arrays with the picture to edit as "input".
          key: of all noise, together with the rows' seeds.
        """
        rows, count = links.valid.shape
        request = read_request(inputs, rows)
        states, _ = self.text_states(links)
        pictures = self.edit(states, request, row_keys(key, request.seed, count))
        return as_bytes(pictures).reshape(rows, count, *pictures.shape[1:])

    def edit(
        self, states: Float[Array, "N T W"], request: Request, keys: jax.Array
    ) -> Float[Array, "N H W 3"]:
        """Edited pictures in [0, 1] from text states; `request.input` has a row for each K of them.

        Raises:
          ValueError: no picture to edit.
        """
        if request.input is None:
            raise ValueError("editing needs the picture to edit as `input`")
        picture = for_links(request.input, len(states) // len(request.input))
        source = self.source(self.moments(picture, None))
        return self.paint(request, self.guided(states, source, request), keys, source.shape[1:3])

    def guided(
        self, states: Float[Array, "N T W"], source: Float[Array, "N h w L"], request: Request
    ) -> Predict:
        """(latents, time) -> noise: what the picture adds to nothing, and the text to the picture."""
        nothing = jnp.broadcast_to(self.no_text(), states.shape)
        context = side_by_side(states, nothing, nothing)
        pictures = side_by_side(source, source, jnp.zeros_like(source))
        sampling = self.config.sampling
        text = sampling.guidance if request.guidance is None else request.guidance
        image = sampling.image_guidance if request.image_guidance is None else request.image_guidance
        # As in the pipeline: both or none. With both weights 1, what is left is the prediction with both.
        on = (jnp.asarray(text) > 1) & (jnp.asarray(image) >= 1)
        text, image = jnp.where(on, text, 1.0), jnp.where(on, image, 1.0)

        def predict(latents: Float[Array, "N h w L"], time: Float[Array, ""]) -> Float[Array, "N h w L"]:
            x = jnp.concatenate([side_by_side(latents, latents, latents), pictures], axis=-1)
            found = self.predict_noise(x, jnp.full(len(x), time), context)
            both, only_picture, neither = apart(found, 3)
            return neither + text * (both - only_picture) + image * (only_picture - neither)

        return predict

    @staticmethod
    def example(rows: int, config: PainterConfig) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract targets for `rows` rows."""
        return example(rows, config, edits=True)
