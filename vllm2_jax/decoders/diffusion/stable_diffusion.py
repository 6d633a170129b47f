# SPDX-License-Identifier: Apache-2.0
"""`[GEN]`: a picture from the words of a conversation. Source: official `modeling_sd.py`."""

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
    row_keys,
    side_by_side,
)
from vllm2_jax.decoders.diffusion.samplers import Predict
from vllm2_jax.decoders.diffusion.targets import Request, Targets, example, read_request


class StableDiffusion(Painter):
    """Stable Diffusion 1.5 that listens to a super link."""

    def noise_losses(self, links: Links, targets: Targets, draws: Draws) -> dict[str, Weighted]:
        """The losses for given draws, one or more a link; targets are those of the N = B * K links."""
        states, valid = self.text_states(links)
        latents = self.latents(targets, draws)
        return self.losses(self.noisy(latents, draws), latents, states, valid, targets, draws)

    def predict(self, links: Links, inputs: Any, *, key: jax.Array) -> UInt8[Array, "B K S S 3"]:
        """A picture for every link, those that are not valid included.

        Args:
          links: B rows with K places for links.
          inputs: a `targets.Request`, or arrays of which none is needed.
          key: of all noise, together with the rows' seeds.
        """
        rows, count = links.valid.shape
        request = read_request(inputs, rows)
        states, _ = self.text_states(links)
        pictures = self.generate(states, request, row_keys(key, request.seed, count))
        return as_bytes(pictures).reshape(rows, count, *pictures.shape[1:])

    def generate(
        self, states: Float[Array, "N T W"], request: Request, keys: jax.Array
    ) -> Float[Array, "N S S 3"]:
        """Pictures in [0, 1] from text states, which may as well be CLIP's own."""
        return self.paint(request, self.guided(states, request), keys, (self.config.latents,) * 2)

    def guided(self, states: Float[Array, "N T W"], request: Request) -> Predict:
        """(latents, time) -> noise: what the text adds to "no text", exaggerated."""
        context = side_by_side(jnp.broadcast_to(self.no_text(), states.shape), states)
        asked = self.config.sampling.guidance if request.guidance is None else request.guidance
        weight = jnp.maximum(asked, 1.0)  # 1 is no guidance; less is not offered by the pipeline either

        def predict(latents: Float[Array, "N h w L"], time: Float[Array, ""]) -> Float[Array, "N h w L"]:
            x = side_by_side(latents, latents)
            without, with_text = apart(self.predict_noise(x, jnp.full(len(x), time), context), 2)
            return without + weight * (with_text - without)

        return predict

    @staticmethod
    def example(rows: int, config: PainterConfig) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract targets for `rows` rows."""
        return example(rows, config, edits=False)
