# SPDX-License-Identifier: Apache-2.0
"""The pose decoder's operations in plain PyTorch: the peer of `launch.benchmark unipose`.

UniPose is Grounding DINO up to its decoder, so that part is transformers'; in place of its decoder stand
`Layers`. float32, random weights, deformable attention by `grid_sample`, matching by SciPy as in the official
code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import GroundingDinoModel
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoDecoderLayer,
    GroundingDinoMLPPredictionHead,
    encode_sinusoidal_position_embedding,
)

from launch.peers.torch_grounding_dino import Given, official, pixels, text
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.heads import EPS
from vllm2_jax.ops.keypoints import SIGMAS

Found = tuple[torch.Tensor, ...]  # logits [N, T], boxes [N, 4] and perhaps keypoints [N, P, 2]
ANSWERS = 100


class Layers(torch.nn.Module):
    """Box layers, then keypoint layers; returns what each of them finds in the only picture."""

    def __init__(self, config: UniPoseConfig, sizes: Any, keypoints: torch.Tensor):
        super().__init__()
        width = config.width
        layers = config.box_layers + config.keypoint_layers
        self.layers = torch.nn.ModuleList(GroundingDinoDecoderLayer(sizes) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width)
        self.position = GroundingDinoMLPPredictionHead(2 * width, width, width, 2)
        self.box = GroundingDinoMLPPredictionHead(width, width, 4, 3)
        self.point = GroundingDinoMLPPredictionHead(width, width, 2, 3)
        self.extent = GroundingDinoMLPPredictionHead(width, width, 2, 3)
        self.encode = GroundingDinoMLPPredictionHead(keypoints.shape[-1], width, width, 3)
        self.extents = torch.nn.Parameter(torch.zeros(keypoints.shape[1], 2))
        self.keypoints, self.config = keypoints, config

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        reference_points: torch.Tensor,
        valid_ratios: torch.Tensor,
        text_encoder_hidden_states: torch.Tensor,
        **scene: Any,
    ) -> tuple[list[Found]]:
        """The arguments of transformers' decoder; of a tuple it hands on the first entry."""
        classes, ratios = text_encoder_hidden_states, valid_ratios.repeat(1, 1, 2)[:, None]
        given = {
            "vision_encoder_hidden_states": scene["vision_encoder_hidden_states"],
            "vision_encoder_attention_mask": scene["vision_encoder_attention_mask"],
            "text_encoder_hidden_states": classes,
            **{name: scene[name] for name in ("spatial_shapes", "spatial_shapes_list", "level_start_index")},
        }

        def look(layer: torch.nn.Module, x: torch.Tensor, boxes: torch.Tensor, mask: Any) -> torch.Tensor:
            on_levels = boxes[:, :, None] * ratios
            places = encode_sinusoidal_position_embedding(
                on_levels[:, :, 0], num_pos_feats=self.config.width // 2
            )
            places = self.position(places)
            return layer(
                x, position_embeddings=places, reference_points=on_levels, self_attn_mask=mask, **given
            )[0]

        x, boxes = inputs_embeds, reference_points
        found: list[Found] = []
        for layer in self.layers[: self.config.box_layers]:
            fixed = boxes.detach()
            x = look(layer, x, fixed, None)
            normed = self.norm(x)
            found.append(((normed @ classes.mT)[0], moved(boxes, self.box(normed))[0]))
            boxes = moved(fixed, self.box(x))
        x, boxes = self.expand(x, boxes, (x @ classes.mT).amax(-1))
        mask = self.mask()
        for layer in self.layers[self.config.box_layers :]:
            fixed = boxes.detach()
            x = look(layer, x, fixed, mask)
            instances, points = self.cut(self.norm(x))
            of_instances, of_points = self.cut(boxes)
            found.append(
                (
                    (instances @ classes.mT)[0],
                    moved(of_instances, self.box(instances))[0],
                    moved(of_points[..., :2], self.point(points))[0],
                )
            )
            instances, points = self.cut(x)
            of_instances, of_points = self.cut(fixed)
            around = moved(of_points, torch.cat([self.point(points), self.extent(points)], -1))
            boxes = torch.cat([moved(of_instances, self.box(instances))[:, :, None], around], 2).flatten(1, 2)
        return (found,)

    def expand(
        self, x: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best queries, each followed by one for every keypoint, and their boxes."""
        best = scores.topk(self.config.instances).indices[..., None]
        x = x.gather(1, best.expand(-1, -1, x.shape[-1]))[:, :, None]
        boxes = boxes.gather(1, best.expand(-1, -1, 4))[:, :, None]
        keypoints = self.encode(self.keypoints)[:, None].expand(-1, self.config.instances, -1, -1)
        places = moved(boxes[..., :2], self.point(keypoints))
        extents = self.extents.sigmoid() * boxes[..., 2:]
        around = torch.cat([boxes, torch.cat([places, extents], -1)], 2)
        return torch.cat([x, keypoints], 2).flatten(1, 2), around.flatten(1, 2)

    def cut(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Instances [B, G, C] and their keypoints [B, G, P, C]."""
        figures = x.unflatten(1, (self.config.instances, -1))
        return figures[:, :, 0], figures[:, :, 1:]

    def mask(self) -> torch.Tensor:
        """What is added to the scores: nothing inside an instance, minus infinity elsewhere."""
        owner = torch.arange(self.config.instances).repeat_interleave(1 + self.keypoints.shape[1])
        return torch.zeros(len(owner), len(owner)).masked_fill(owner[:, None] != owner, float("-inf"))


def moved(references: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """References (0 to 1) moved by logits."""
    return (torch.special.logit(references, eps=EPS) + by).sigmoid()


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The losses of one picture with N objects."""

    config: Any
    boxes: torch.Tensor
    labels: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    area: torch.Tensor
    sigmas: torch.Tensor

    def __call__(self, sets: list[Found]) -> torch.Tensor:
        """The sum of all terms over all sets of predictions."""
        return torch.stack([self.of_set(*found) for found in sets]).sum() / len(self.boxes)

    def of_set(
        self, logits: torch.Tensor, boxes: torch.Tensor, keypoints: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Matches one set, and sums its terms."""
        config = self.config
        with torch.no_grad():
            cost = self.cost(logits, boxes, keypoints)
        query, truth = map(torch.from_numpy, linear_sum_assignment(cost.numpy()))
        wanted = torch.zeros_like(logits)
        wanted[query, self.labels[truth]] = 1
        share = wanted * logits.sigmoid() + (1 - wanted) * (1 - logits.sigmoid())
        focal = binary_cross_entropy_with_logits(logits, wanted, reduction="none") * (1 - share) ** 2
        total = config.class_weight * (focal * (0.25 * wanted + 0.75 * (1 - wanted))).sum()
        chosen, right = boxes[query], self.boxes[truth]
        overlap = generalized_box_iou(center_to_corners_format(chosen), center_to_corners_format(right))
        total = total + config.box_weight * (chosen - right).abs().sum()
        total = total + config.giou_weight * (1 - overlap.diagonal()).sum()
        if keypoints is None:
            return total
        distance, alike = self.compare(keypoints[query], truth)
        return total + config.keypoint_weight * (distance.sum() + (1 - alike).sum())

    def cost(self, logits: torch.Tensor, boxes: torch.Tensor, keypoints: torch.Tensor | None) -> torch.Tensor:
        """Of every pair of a query and an object, [Q, N]."""
        config, p = self.config, logits.sigmoid()
        hit, miss = -0.25 * (1 - p) ** 2 * logsigmoid(logits), -0.75 * p**2 * logsigmoid(-logits)
        overlap = generalized_box_iou(center_to_corners_format(boxes), center_to_corners_format(self.boxes))
        cost = config.class_cost * (hit - miss)[:, self.labels]
        cost = cost + config.box_cost * torch.cdist(boxes, self.boxes, p=1) - config.giou_cost * overlap
        if keypoints is None:
            return cost
        distance, alike = self.compare(keypoints[:, None], slice(None))
        return cost + config.keypoint_cost * distance + config.oks_cost * (1 - alike)

    def compare(self, keypoints: torch.Tensor, truth: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance of the visible keypoints, and object keypoint similarity."""
        apart, visible = keypoints - self.keypoints[truth], self.visible[truth]
        spread = (2 * self.sigmas) ** 2 * self.area[truth][..., None]
        near = (-apart.square().sum(-1) / (2 * spread)).exp() * visible
        alike = (near.sum(-1) / (visible.sum(-1) + 1e-6)).clamp(min=1e-6)
        return (apart.abs().sum(-1) * visible).sum(-1), alike


class Peer:
    """One picture, inference or loss and gradient."""

    def __init__(
        self, config: UniPoseConfig, states: np.ndarray, targets: Mapping[str, np.ndarray], objects: int
    ):
        keypoints = targets["keypoint_ids"].shape[1]
        links = torch.from_numpy(np.array(states))
        tokens = links.shape[1] - keypoints
        sizes = official(config.shared, tokens, links.shape[2])
        self.model = GroundingDinoModel(sizes)
        self.model.text_backbone = Given(links[:, :tokens])
        self.model.decoder = Layers(config, sizes, links[:, tokens:])
        self.inputs = {"pixel_values": pixels(targets["image"]), "input_ids": text(tokens)}
        truth = {name: torch.from_numpy(x[0, :objects]) for name, x in targets.items() if x.ndim > 1}
        self.criterion = Criterion(
            config.criterion,
            truth["boxes"],
            truth["labels"].long(),
            truth["keypoints"],
            (truth["visibility"] > 0).float(),
            truth["area"],
            torch.from_numpy(SIGMAS[targets["keypoint_ids"][0]]),
        )
        self.queries = config.queries

    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def predict(self) -> Found:
        """Scores, labels, boxes and keypoints of the best pairs of an instance and a class."""
        self.model.eval()
        logits, boxes, keypoints = self.found()[-1]
        scores, index = logits.sigmoid().flatten().topk(ANSWERS)
        instance = index // logits.shape[1]
        return scores, index % logits.shape[1], boxes[instance], keypoints[instance]

    def train(self) -> float:
        """Loss with its gradient; returns the loss."""
        self.model.train()
        loss = self.criterion(self.found())
        loss.backward()
        self.model.zero_grad()
        return float(loss.detach())

    def found(self) -> list[Found]:
        """All sets of predictions: cells, box layers, keypoint layers."""
        layers, *_, logits, boxes, _, _ = self.model(**self.inputs, return_dict=False)
        best = logits[0].amax(-1).topk(self.queries).indices
        return [(logits[0, best], boxes[0, best].sigmoid()), *layers]
