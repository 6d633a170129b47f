# SPDX-License-Identifier: Apache-2.0
"""The same UNet in PyTorch, from diffusers: the peer of `launch.benchmark diffusion`.

float32, the attention that diffusers picks (sdpa), no gradient checkpointing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from vllm2_jax.decoders.diffusion.config import ScheduleConfig, UNetConfig

if TYPE_CHECKING:
    from launch.race_diffusion import Work


class Peer:
    """The official model at the sizes of `config`, with the given weights under their official names."""

    def __init__(
        self,
        config: UNetConfig,
        work: "Work",
        steps: int,
        guidance: float,
        weights: Mapping[str, np.ndarray],
    ):
        kinds = ["CrossAttn" if attends else "" for attends in config.attends]
        with torch.device("meta"):  # the weights take the place of the first ones, which are never made
            unet: Any = UNet2DConditionModel(
                in_channels=config.channels,
                out_channels=config.channels_out,
                block_out_channels=config.widths,
                down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
                up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
                layers_per_block=config.depth,
                attention_head_dim=config.heads,
                cross_attention_dim=config.context,
                norm_num_groups=config.groups,
            )
        tensors = {name: torch.from_numpy(np.array(x, order="C")) for name, x in weights.items()}
        unet.load_state_dict(tensors, assign=True)
        self.unet: Any = unet.requires_grad_(False)
        noise = ScheduleConfig()
        self.scheduler: Any = DDIMScheduler(
            num_train_timesteps=noise.steps,
            beta_start=noise.first,
            beta_end=noise.last,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        self.steps, self.guidance, self.time = steps, guidance, work.time
        self.latents = torch.from_numpy(work.latents.transpose(0, 3, 1, 2).copy())
        self.text, self.no_text = torch.from_numpy(work.text), torch.from_numpy(work.no_text)

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        """Noise of one picture."""
        return self.unet(self.latents, self.time, self.text).sample

    def frozen(self) -> torch.Tensor:
        """Gradient of the text states."""
        return self._gradients()[0]

    def train(self) -> torch.Tensor:
        """All gradients; returns that of the text states."""
        weights = list(self.unet.requires_grad_(True).parameters())
        text, *_ = self._gradients(*weights)
        self.unet.requires_grad_(False)
        return text

    def _gradients(self, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        text = self.text.clone().requires_grad_()
        noise = self.unet(self.latents, self.time, text).sample
        return torch.autograd.grad((noise - self.latents).square().mean(), [text, *weights])

    @torch.no_grad()
    def sample(self) -> torch.Tensor:
        """Latents of a picture, as the pipeline computes them."""
        self.scheduler.set_timesteps(self.steps)
        latents, context = self.latents, torch.cat([self.no_text, self.text])
        for time in self.scheduler.timesteps:
            without, with_text = self.unet(torch.cat([latents] * 2), time, context).sample.chunk(2)
            noise = without + self.guidance * (with_text - without)
            latents = self.scheduler.step(noise, time, latents).prev_sample
        return latents
