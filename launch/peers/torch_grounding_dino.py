# SPDX-License-Identifier: Apache-2.0
"""transformers' Grounding DINO at the sizes of a config: the peer of `launch.benchmark grounding_dino`.

float32, random weights; deformable attention by `grid_sample`, which is what transformers does without a GPU.
In place of its text model stand the given vectors, so that neither side pays for a language model.
"""

from collections.abc import Mapping

import numpy as np
import torch
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig
from transformers.modeling_outputs import BaseModelOutput

from vllm2_jax.decoders.grounding_dino.config import GroundingDINOConfig
from vllm2_jax.vision.swin import SwinConfig as OurSwinConfig

START, STOP, END, WORD = 101, 1012, 102, 2000  # token ids; theirs knows the first three


class Given(torch.nn.Module):
    """Says the same vectors whatever the text, where a text model stood."""

    def __init__(self, states: torch.Tensor):
        super().__init__()
        self.states = states

    def forward(self, *args: object, return_dict: bool | None = None) -> BaseModelOutput:
        """The vectors as a text model's last hidden states."""
        del args, return_dict
        return BaseModelOutput(last_hidden_state=self.states)


class Peer:
    """One picture, forward or with loss and gradient."""

    def __init__(
        self, config: GroundingDINOConfig, states: np.ndarray, targets: Mapping[str, np.ndarray], objects: int
    ):
        tokens = states.shape[1]
        self.model = GroundingDinoForObjectDetection(official(config, tokens, states.shape[2]))
        self.model.model.text_backbone = Given(torch.from_numpy(np.array(states)))
        self.inputs = {"pixel_values": pixels(targets["image"]), "input_ids": text(tokens)}
        self.labels = [
            {
                "class_labels": torch.from_numpy(targets["labels"][0, :objects].astype(np.int64)),
                "boxes": torch.from_numpy(targets["boxes"][0, :objects]),
            }
        ]

    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and boxes of the last layer."""
        out = self.model.eval()(**self.inputs)
        return out.logits, out.pred_boxes

    def train(self) -> float:
        """Loss with its gradient; returns the loss."""
        loss = self.model.train()(**self.inputs, labels=self.labels).loss
        loss.backward()
        self.model.zero_grad()
        return float(loss.detach())


def official(config: GroundingDINOConfig, tokens: int, width: int) -> GroundingDinoConfig:
    """The same sizes in their words; the text model, which is thrown away, has no layers."""
    costs = config.criterion
    return GroundingDinoConfig(
        backbone_config=swin(config.backbone),
        text_config=BertConfig(vocab_size=8, hidden_size=width, num_hidden_layers=0, num_attention_heads=8),
        d_model=config.width,
        num_queries=config.queries,
        num_feature_levels=config.levels,
        encoder_layers=config.encoder_layers,
        encoder_attention_heads=config.encoder_heads,
        encoder_ffn_dim=config.encoder_mlp,
        encoder_n_points=config.encoder_points,
        decoder_layers=config.decoder_layers,
        decoder_attention_heads=config.decoder_heads,
        decoder_ffn_dim=config.decoder_mlp,
        decoder_n_points=config.decoder_points,
        dropout=config.dropout,
        fusion_droppath=config.drop_path,
        auxiliary_loss=True,
        class_cost=costs.class_cost,
        bbox_cost=costs.box_cost,
        giou_cost=costs.giou_cost,
        bbox_loss_coefficient=costs.box_weight,
        giou_loss_coefficient=costs.giou_weight,
        positional_embedding_temperature=int(config.temperature),
        max_text_len=tokens,
    )


def swin(config: OurSwinConfig) -> SwinConfig:
    """The same backbone; maps of strides 8, 16 and 32 come out."""
    return SwinConfig(
        embed_dim=config.width,
        depths=list(config.depths),
        num_heads=list(config.heads),
        window_size=config.window,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path,
        out_indices=[2, 3, 4],  # type: ignore[call-arg]  # it takes them, its signature does not say so
    )


def pixels(image: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] of 0..255 to [B, 3, H, W] of about normal numbers."""
    return torch.from_numpy((image.transpose(0, 3, 1, 2).astype(np.float32) - 116) / 58)


def text(tokens: int) -> torch.Tensor:
    """[1, tokens] ids: words with a stop behind each, between a start and an end."""
    if tokens % 2:
        raise ValueError(f"{tokens} tokens: start, words with their stops and end make an even number")
    return torch.tensor([[START, *[WORD, STOP] * (tokens // 2 - 1), END]])
