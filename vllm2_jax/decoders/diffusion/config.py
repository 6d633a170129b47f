# SPDX-License-Identifier: Apache-2.0
"""Sizes and choices of the decoders that paint; the defaults are those of Stable Diffusion 1.5."""

import dataclasses

OBJECTIVES = ("noise", "autoencoder", "both")
PREDICTS = ("noise", "velocity")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The network that predicts noise.

    Attributes:
      channels: of its input: 4 (noisy latents), or 8 with the latents of a picture to edit behind them.
      channels_out: of the predicted noise.
      widths: channels of each level; every further level has half the side.
      attends: which levels have transformer blocks. The middle always has one.
      depth: residual blocks of a level on the way down; there is one more on the way up.
      heads: of every attention, whatever its width. (The hub's config calls this number
        `attention_head_dim`.)
      context: width of the text states.
      groups: of all group norms.
      remat: what the backward pass keeps of each residual or transformer block; a key of `nn.stack.REMAT`.
      attention: implementation of self-attention, see `nn.attention`. "xla" keeps all pairs of latents:
        4096 x 4096 a head at 512 pixels; "splash" does not.
    """

    channels: int = 4
    channels_out: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    depth: int = 2
    heads: int = 8
    context: int = 768
    groups: int = 32
    remat: str = "none"
    attention: str = "xla"

    def __post_init__(self):
        if len(self.attends) != len(self.widths):
            raise ValueError(f"attends {self.attends} and widths {self.widths} are not of the same levels")
        wrong = [width for width in self.widths if width % self.groups or width % self.heads]
        if wrong:
            raise ValueError(
                f"widths {wrong} are no multiples of {self.groups} groups and {self.heads} heads"
            )

    @property
    def time(self) -> int:
        """Width of the embedded time step."""
        return 4 * self.widths[0]


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between pixels and latents.

    Attributes:
      widths: channels of each level; the side halves between two.
      depth: residual blocks of a level of the encoder; the decoder has one more.
      latent: channels of the latents.
      groups: of all group norms.
      scale: latents are multiplied by it before noise is added, so that their variance is about 1.
      remat: as in `UNetConfig`.
      attention: implementation, one head over all latents.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    latent: int = 4
    groups: int = 32
    scale: float = 0.18215
    remat: str = "none"
    attention: str = "xla"

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.widths) - 1)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """CLIP's text encoder; the defaults are ViT-L/14.

    Attributes:
      vocab: tokens.
      width, depth, heads, mlp: of the transformer.
      length: T, tokens of every caption: start, text, end, and ends as padding.
      start, end: ids of the first token and of the last one, which is also the padding.
      eps: of all layer norms.
      attention: implementation, see `nn.attention`.
    """

    vocab: int = 49_408
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    length: int = 77
    start: int = 49_406
    end: int = 49_407
    eps: float = 1e-5
    attention: str = "xla"

    @property
    def empty(self) -> tuple[int, ...]:
        """Token ids of the empty caption."""
        return (self.start, *[self.end] * (self.length - 1))


@dataclasses.dataclass(frozen=True)
class MapperConfig:
    """From link states to text states: as wide as those, with as many queries as a text has tokens.

    Attributes:
      heads: of all attentions.
      mlp: wide layer of the feed-forward parts.
    """

    heads: int = 8
    mlp: int = 3072


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How noise grows with time: `linspace(sqrt(first), sqrt(last), steps) ** 2` is the variance of a step.

    Attributes:
      steps: time steps of training.
      first, last: variance of the first and the last step.
    """

    steps: int = 1000
    first: float = 0.00085
    last: float = 0.012


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a picture is made, where a request does not say otherwise.

    Attributes:
      sampler: a key of `samplers.SAMPLERS`.
      steps: calls of the noise predictor (PNDM makes one more).
      max_steps: the compiled program serves every number of steps up to this one.
      guidance: how far the text pushes; 1 and below switch guidance off.
      image_guidance: how far the picture to edit pushes.
    """

    sampler: str = "pndm"
    steps: int = 50
    max_steps: int = 100
    guidance: float = 7.5
    image_guidance: float = 1.5


@dataclasses.dataclass(frozen=True)
class PainterConfig:
    """A decoder that paints; the defaults are those of generation, `EDIT` those of editing.

    Attributes:
      unet, vae, text, mapper, schedule, sampling: the parts.
      size: side of the pictures in pixels, in training and in sampling.
      drop_rate: r; see the losses for which share of rows loses its text or its picture.
      caption_weight: coefficient of the caption alignment loss.
      draws: how many noisy versions of a picture train at once. The loss is the same on average; a small
        picture's share of the language model's and the autoencoder's work is paid once for all of them.
      predicts: what the UNet's output means. "noise" is Stable Diffusion 1.5. "velocity", as in Stable
        Diffusion 2 (Salimans and Ho, 2202.00512), is how the latents change as noise grows: at the last time
        step minus the picture. There words decide about a small picture, and there a network that predicts
        noise has to copy its input to a few percent, while they change its loss by less than that.
      objective: "noise" trains the noise predictor, as the official stages do, which start from a trained
        autoencoder. For models that start from nothing: "autoencoder" trains that alone, a stage of its own;
        "both" trains it beside the noise predictor, whose loss does not reach it.
      noise_weight: coefficient of the noise prediction.
      reconstruction_weight, kl_weight: of the autoencoder's error and prior, where it is trained.
      dtype: of products and activations; losses, schedule and samplers are float32.
    """

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    mapper: MapperConfig = MapperConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = SamplingConfig()
    size: int = 512
    drop_rate: float = 0.1
    caption_weight: float = 0.1
    draws: int = 1
    predicts: str = "noise"
    objective: str = "noise"
    noise_weight: float = 1.0
    reconstruction_weight: float = 1.0
    kl_weight: float = 1e-6
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.text.width != self.unet.context:
            raise ValueError(
                f"text states are {self.text.width} wide, the UNet's context is {self.unet.context}: "
                "make text.width and unet.context equal"
            )
        if self.size % self.vae.factor:
            raise ValueError(f"size={self.size} is no multiple of the autoencoder's factor {self.vae.factor}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is none of {', '.join(OBJECTIVES)}")
        if self.predicts not in PREDICTS:
            raise ValueError(f"predicts={self.predicts!r} is none of {', '.join(PREDICTS)}")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: a picture needs at least one noisy version")
        if not 0 <= 3 * self.drop_rate <= 1:
            raise ValueError(f"drop_rate={self.drop_rate}: three times this share of rows is dropped")

    @property
    def latents(self) -> int:
        """Side of the latents."""
        return self.size // self.vae.factor


# InstructPix2Pix: 8 channels into the UNet, pictures of 256 pixels, and its own pipeline's defaults.
EDIT = PainterConfig(
    unet=UNetConfig(channels=8),
    sampling=SamplingConfig(sampler="euler_ancestral", steps=100),
    size=256,
    drop_rate=0.05,
)
