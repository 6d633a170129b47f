# SPDX-License-Identifier: Apache-2.0
"""What both decoders that paint are made of.

    link states -- mapper -- text states --+
                                           +-- UNet -- noise -- sampler -- latents -- VAE -- picture
    picture to edit -- VAE -- latents -----+

The mapper learns to speak the language of CLIP's text states, which the UNet understands. What is frozen is
said by the optimizer's table of groups, not here: in generation autoencoder, text encoder and UNet, in
editing the first two. Gradients reach the mapper and the language model through a frozen UNet all the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from vllm2_jax.batch import Links, Weighted
from vllm2_jax.decoders.diffusion.config import PainterConfig
from vllm2_jax.decoders.diffusion.mapper import Mapper
from vllm2_jax.decoders.diffusion.samplers import Plan, Predict, make_plan, sample
from vllm2_jax.decoders.diffusion.schedule import add_noise, noise_of, velocity
from vllm2_jax.decoders.diffusion.targets import Request, Targets, read_targets, to_pixels
from vllm2_jax.decoders.diffusion.text import CLIPText
from vllm2_jax.decoders.diffusion.unet import UNet
from vllm2_jax.decoders.diffusion.vae import VAE, draw_latents
from vllm2_jax.nn.axes import constrain


@struct.dataclass
class Draws:
    """All that is random in a training step, so that a test can hand in what another program drew.

    There are B = N * C of each, C noisy versions of every picture side by side.

    Attributes:
      posterior: normal noise that draws the latents from their moments.
      noise: normal noise that is added and has to be predicted.
      time: time step of every row.
      drop: uniform in [0, 1); decides which rows lose their text or their picture.
    """

    posterior: Float[Array, "B h w L"]
    noise: Float[Array, "B h w L"]
    time: Int[Array, " B"]
    drop: Float[Array, " B"]


class Painter(nnx.Module):
    """The parts, and what generation and editing do alike."""

    edits = False  # whether there is a picture to start from

    def __init__(self, config: PainterConfig, *, link_width: int, rngs: nnx.Rngs):
        dtype, text = jnp.dtype(config.dtype), config.text
        self.mapper = Mapper(link_width, text.width, text.length, config.mapper, dtype=dtype, rngs=rngs)
        self.unet = UNet(config.unet, dtype=dtype, rngs=rngs)
        self.vae = VAE(config.vae, dtype=dtype, rngs=rngs)
        self.text = CLIPText(text, dtype=dtype, rngs=rngs)
        self.config = config

    def loss(self, links: Links, targets: Any, *, key: jax.Array) -> dict[str, Weighted]:
        """ "noise" and "caption", "autoencoder" and "prior", or all four, as `config.objective` says.

        Args:
          links: B rows with K places for links.
          targets: arrays by name, see `targets.Targets`.
          key: of everything random.

        Raises:
          ValueError: targets that are not whole, or moments where the encoder that made them is trained.
        """
        count = links.valid.shape[1]
        found = jax.tree.map(lambda x: for_links(x, count), read_targets(targets, edits=self.edits))
        terms = {}
        if self.config.objective != "noise":
            if found.moments is not None or found.input_moments is not None:
                raise ValueError(
                    f"objective={self.config.objective!r} trains the autoencoder, which needs pictures; the "
                    "targets have moments: take a dataset that is not `encoded`"
                )
            own = jax.random.fold_in(key, 1)
            terms = self.autoencoder_losses(own, found.image, links.valid.reshape(-1))
        if self.config.objective != "autoencoder":
            draws = self.draw(key, links.valid.size * self.config.draws, found)
            terms |= self.noise_losses(links, found, draws)
        return terms

    def noise_losses(self, links: Links, targets: Targets, draws: Draws) -> dict[str, Weighted]:
        """The losses for given draws, one or more a link; targets are those of the N = B * K links."""
        raise NotImplementedError

    def text_states(self, links: Links) -> tuple[Float[Array, "N T W"], Bool[Array, " N"]]:
        """Text states of every link, N = B * K of them, and which links exist."""
        states = self.mapper(links.states.reshape(-1, *links.states.shape[-2:]))
        return constrain(states, "batch", None, None), links.valid.reshape(-1)

    def no_text(self) -> Float[Array, "1 T W"]:
        """The text states of an empty caption, which stand for "no text"."""
        return self.text(jnp.array([self.config.text.empty]))

    def moments(self, image: Array | None, moments: Array | None) -> Float[Array, "B h w M"]:
        """What the encoder makes of pictures; given moments are taken as they are."""
        if moments is not None:
            return moments.astype(jnp.float32)
        assert image is not None  # `read_targets` has seen to it
        found = self.vae.encode(to_pixels(image))
        # Latents that are easy to predict need not be those that hold a picture.
        return jax.lax.stop_gradient(found) if self.config.objective == "both" else found

    def draw(self, key: jax.Array, rows: int, targets: Targets) -> Draws:
        """Fresh draws for a training step."""
        if targets.moments is not None:
            sides = targets.moments.shape[1:3]
        else:
            assert targets.image is not None
            sides = tuple(side // self.config.vae.factor for side in targets.image.shape[1:3])
        shape = (rows, *sides, self.config.vae.latent)
        posterior, noise, time, drop = jax.random.split(key, 4)
        return Draws(
            posterior=jax.random.normal(posterior, shape),
            noise=jax.random.normal(noise, shape),
            time=jax.random.randint(time, (rows,), 0, self.config.schedule.steps),
            drop=jax.random.uniform(drop, (rows,)),
        )

    def latents(self, targets: Targets, draws: Draws) -> Float[Array, "B h w L"]:
        """Scaled latents of the pictures to make; one for each draw."""
        moments = self.moments(targets.image, targets.moments)
        copies = len(draws.time) // len(moments)
        return draw_latents(for_links(moments, copies), draws.posterior) * self.config.vae.scale

    def noisy(self, latents: Float[Array, "B h w L"], draws: Draws) -> Float[Array, "B h w L"]:
        """Latents with the noise of their draws."""
        return add_noise(latents, draws.noise, draws.time, self.config.schedule)

    def predict_noise(
        self,
        x: Float[Array, "B h w C"],
        time: Float[Array, " B"] | Int[Array, " B"],
        context: Float[Array, "B T W"],
    ) -> Float[Array, "B h w L"]:
        """What samplers ask for, whatever the UNet predicts; as `unet.UNet`."""
        found = self.unet(x, time, context)
        if self.config.predicts == "velocity":
            return noise_of(found, x[..., : self.config.vae.latent], time, self.config.schedule)
        return found

    def context(self, states: Float[Array, "B T W"], draws: Draws) -> Float[Array, "B T W"]:
        """What the UNet gets to read in training: a share of 2 r of the rows loses its text.

        In generation the official code meant r; the factor was copied from editing.
        """
        drop = draws.drop < 2 * self.config.drop_rate
        return jnp.where(drop[:, None, None], self.no_text(), states)

    def losses(
        self,
        x: Float[Array, "B h w C"],
        latents: Float[Array, "B h w L"],
        states: Float[Array, "N T W"],
        valid: Bool[Array, " N"],
        targets: Targets,
        draws: Draws,
    ) -> dict[str, Weighted]:
        """Noise prediction and caption alignment; rows that lose their text for the UNet keep the latter.

        Squared errors of velocities are those of noise, divided by A_t.

        Args:
          x: input of the UNet for every draw, B = N * C.
          latents: what is in `x` behind the noise.
          states: text states of every row.
          valid: rows that count.
          targets: `caption` or `caption_states` are read.
          draws: all but `posterior` are read.
        """
        copies = len(x) // len(states)
        predicted = self.unet(x, draws.time, self.context(for_links(states, copies), draws))
        goal = draws.noise
        if self.config.predicts == "velocity":
            goal = velocity(latents, draws.noise, draws.time, self.config.schedule)
        error = self.config.noise_weight * jnp.square(predicted - goal)
        terms = {"noise": row_mean(error, for_links(valid, copies))}
        wanted = targets.caption_states
        if wanted is None:
            assert targets.caption is not None
            wanted = self.text(targets.caption)
        captioned = valid if targets.has_caption is None else valid & targets.has_caption
        error = jnp.square(states - wanted.astype(jnp.float32))
        return terms | {"caption": row_mean(self.config.caption_weight * error, captioned)}

    def autoencoder_losses(
        self, key: jax.Array, image: Array, valid: Bool[Array, " B"]
    ) -> dict[str, Weighted]:
        """The autoencoder alone: squared error of pictures, distance of scaled latents to normal ones."""
        pixels, scale = to_pixels(image), self.config.vae.scale
        moments = self.vae.encode(pixels)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        error = jnp.square(self.vae.decode(draw_latents(moments, noise)) - pixels)
        logvar = logvar + 2 * jnp.log(scale)
        divergence = 0.5 * (jnp.square(mean * scale) + jnp.exp(logvar) - 1 - logvar)
        return {
            "autoencoder": row_mean(self.config.reconstruction_weight * error, valid),
            "prior": row_mean(self.config.kl_weight * divergence, valid),
        }

    def plan(self, request: Request) -> Plan:
        """The request's plan, or the config's."""
        return make_plan(self.config.sampling, self.config.schedule) if request.plan is None else request.plan

    def paint(
        self,
        request: Request,
        predict: Predict,
        keys: jax.Array,
        sides: tuple[int, ...],
    ) -> Float[Array, "N H W 3"]:
        """Samples latents and decodes them to pictures in [0, 1].

        Args:
          request: gives the plan.
          predict: (latents, time) -> noise.
          keys: of each row's noise; every row draws its own, so that it does not depend on the others.
          sides: of the latents.
        """
        shape = (*sides, self.config.vae.latent)

        def normal(number: Array | int) -> Float[Array, "N h w L"]:
            drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)
            return constrain(drawn, "batch", None, None, None)

        # Step i draws number i; what a picture starts from is drawn behind the last step.
        plan = self.plan(request)
        latents, _ = sample(plan, predict, normal(plan.active.shape[0]), normal)
        return self.finish(latents)

    def finish(self, latents: Float[Array, "N h w L"]) -> Float[Array, "N H W 3"]:
        """Latents to pictures in [0, 1]."""
        return jnp.clip(self.vae.decode(latents / self.config.vae.scale) / 2 + 0.5, 0, 1)


def row_mean(error: Float[Array, "B *D"], valid: Bool[Array, " B"]) -> Weighted:
    """Sum over the rows that count of each row's mean, and how many rows count."""
    rows = error.mean(axis=tuple(range(1, error.ndim)))
    return jnp.where(valid, rows, 0).sum(), valid.sum().astype(jnp.float32)


def for_links(x: Array | None, links: int) -> Any:
    """What belongs to a row, once for each of its links (or draws): [B, ...] -> [B * K, ...]; None stays."""
    return x if x is None or links == 1 else jnp.repeat(x, links, axis=0)


def row_keys(key: jax.Array, seed: Int[Array, " B"], links: int) -> jax.Array:
    """One key for every link of every row, [B * K]."""
    of_row = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seed)
    each = jax.vmap(lambda row: jax.vmap(lambda i: jax.random.fold_in(row, i))(jnp.arange(links)))(of_row)
    return each.reshape(-1)


def side_by_side(*parts: Array) -> Array:
    """Row i of every part, then row i + 1: [B, ...] each -> [parts * B, ...]; no row leaves its device."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def apart(x: Array, parts: int) -> list[Array]:
    """`side_by_side` backwards."""
    split = x.reshape(-1, parts, *x.shape[1:])
    return [split[:, i] for i in range(parts)]


def as_bytes(pictures: Float[Array, "*B H W 3"]) -> UInt8[Array, "*B H W 3"]:
    """[0, 1] to 0..255, rounded."""
    return jnp.round(pictures * 255).astype(jnp.uint8)
