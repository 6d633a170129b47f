# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling in PyTorch by `grid_sample`, as official code does it without its CUDA kernel.

The peer of `launch.benchmark deformable`.
"""

import numpy as np
import torch

from vllm2_jax.ops.levels import Shapes


class Sampling:
    """One pass on fixed inputs, forward or forward and backward."""

    def __init__(self, shapes: Shapes, arrays: dict[str, np.ndarray], *, backward: bool):
        self.shapes, self.backward = shapes, backward
        self.gradient = torch.from_numpy(arrays["gradient"])
        inputs = [torch.from_numpy(arrays[name]) for name in ("value", "locations", "weights")]
        self.inputs = [x.requires_grad_(backward) for x in inputs]

    def __call__(self) -> list[torch.Tensor]:
        """The output, and the gradients of values, locations and weights if asked for."""
        if not self.backward:
            with torch.no_grad():
                return [self.sample(*self.inputs)]
        out = self.sample(*self.inputs)
        return [out.detach(), *torch.autograd.grad(out, self.inputs, self.gradient)]

    def sample(self, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[B, S, H, D], [B, Q, H, L, P, 2] and [B, Q, H, L, P] to [B, Q, H D]."""
        rows, queries, heads = locations.shape[:3]
        read = []
        for level, cells in enumerate(value.split([h * w for h, w in self.shapes], dim=1)):
            maps = cells.permute(0, 2, 3, 1).reshape(rows * heads, -1, *self.shapes[level])
            places = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
            read.append(torch.nn.functional.grid_sample(maps, places, align_corners=False))
        shares = weights.transpose(1, 2).reshape(rows * heads, 1, queries, -1)
        out = (torch.cat(read, dim=-1) * shares).sum(-1)
        return out.view(rows, -1, queries).transpose(1, 2)
