# SPDX-License-Identifier: Apache-2.0
"""Paints the pictures that a generated answer calls for."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipelines.collate_diffusion import central_square
from launch.answer import Answer
from launch.build import Run
from vllm2_jax.batch import Links
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.decoders.diffusion.config import SamplingConfig
from vllm2_jax.decoders.diffusion.samplers import make_plan
from vllm2_jax.decoders.diffusion.targets import Request
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.axes import axis_rules
from vllm2_jax.tokens import LINKS


class Brush:
    """Runs the decoders that paint on the link states of answers; each compiles once.

    Args:
      run: gives the decoders and the mesh.
      sampling: fields of `SamplingConfig` that differ from the decoders' own.
      seed: of the noise.
    """

    def __init__(self, run: Run, sampling: Mapping[str, Any], seed: int):
        self.run, self.sampling, self.seed = run, sampling, seed
        self._predict = jax.jit(_predict, static_argnums=1)

    def __call__(
        self, model: VisionLLMv2, answer: Answer, picture: UInt8[np.ndarray, "h w 3"] | None
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "S S 3"]]]:
        """Every link of the answer whose decoder paints: a name for the picture, and the picture.

        Args:
          model: with weights.
          answer: with the states of its links.
          picture: what an edit starts from.

        Raises:
          ValueError: an edit without a picture, or an impossible sampler or number of steps.
        """
        decoders = {link.token: link.decoder for link in LINKS}
        for number, (token, states) in enumerate(zip(answer.links, answer.states, strict=True)):
            decoder = decoders[token]
            if decoder not in PAINTERS or decoder not in self.run.model.decoders:
                continue
            request = self.request(decoder, picture, self.seed + number)
            links = Links(jnp.asarray(states)[None, None], jnp.ones((1, 1), bool))
            with jax.set_mesh(self.run.mesh), axis_rules(self.run.strategy.activation_rules):
                made = self._predict(model, decoder, links, request)
            yield f"{number + 1}_{token}", np.asarray(made)[0, 0]

    def request(self, decoder: str, picture: UInt8[np.ndarray, "h w 3"] | None, seed: int) -> Request:
        """What is asked of a decoder."""
        config = self.run.model.decoders[decoder]
        settings: SamplingConfig = dataclasses.replace(config.sampling, **self.sampling)
        before = None
        if decoder == "instruct_pix2pix":
            if picture is None:
                raise ValueError("the answer edits a picture, but there is none: give one with --image")
            before = jnp.asarray(central_square(picture, config.size))[None]
        return Request(
            seed=jnp.array([seed]),
            input=before,
            plan=jax.tree.map(jnp.asarray, make_plan(settings, config.schedule)),
            guidance=jnp.asarray(settings.guidance),
            image_guidance=jnp.asarray(settings.image_guidance),
        )


def _predict(model: VisionLLMv2, decoder: str, links: Links, request: Request) -> jax.Array:
    return model.decoders[decoder].predict(links, request, key=jax.random.key(0))
