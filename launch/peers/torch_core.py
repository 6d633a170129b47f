# SPDX-License-Identifier: Apache-2.0
"""The same trunk in PyTorch, from transformers' own CLIP and Llama: the peer of `launch.benchmark core`.

Frozen tower without gradient, two-layer bridge, float32, the attention that transformers picks (sdpa), AdamW
with gradient clipping. Neither side stores less than it wants (no gradient checkpointing).
"""

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from vllm2_jax.model import ModelConfig


class Peer(torch.nn.Module):
    """Tower, bridge and language model at the sizes of `config`, with random weights."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        vision, llm = config.vision, config.llm
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=vision.width,
                num_hidden_layers=vision.depth,
                num_attention_heads=vision.heads,
                intermediate_size=vision.mlp,
                image_size=vision.image_size,
                patch_size=vision.patch,
            )
        ).requires_grad_(False)
        self.bridge = torch.nn.Sequential(
            torch.nn.Linear(vision.width, llm.width), torch.nn.GELU(), torch.nn.Linear(llm.width, llm.width)
        )
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=llm.vocab,
                hidden_size=llm.width,
                num_hidden_layers=llm.depth,
                num_attention_heads=llm.heads,
                num_key_value_heads=llm.kv_heads,
                intermediate_size=llm.mlp,
                max_position_embeddings=llm.rope.max_positions,
            )
        )
        self.layer = config.vision_layer

    def embed(self, tokens: torch.Tensor, image: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Embedded columns [B, L, D]: `image` marks those that take the picture's tokens in order."""
        with torch.no_grad():
            states = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
        x = self.llm.get_input_embeddings()(tokens)
        return x.masked_scatter(image[..., None], self.bridge(states[:, 1:]).to(x.dtype))


class Training:
    """One training step on a fixed batch."""

    def __init__(self, config: ModelConfig, batch: dict[str, np.ndarray]):
        self.model = Peer(config)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
        self.trained = trained
        self.batch = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}

    def __call__(self) -> float:
        """Runs the step to its end; returns the loss."""
        self.optimizer.zero_grad()
        b = self.batch
        x = self.model.embed(b["tokens"], b["image"], b["pixels"])
        out = self.model.llm(inputs_embeds=x, attention_mask=b["valid"], labels=b["labels"])
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return float(out.loss.detach())


class Generation:
    """Greedy generation of a fixed number of tokens for left-padded prompts, with a key-value cache."""

    def __init__(self, config: ModelConfig, batch: dict[str, np.ndarray], new: int):
        self.model, self.new = Peer(config).eval(), new
        self.batch = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}

    @torch.no_grad()
    def __call__(self) -> int:
        """Generates for the whole batch at once; returns the number of tokens."""
        return self._run(self.batch)

    @torch.no_grad()
    def one_by_one(self) -> int:
        """Generates for one row after the other, as the official code has to."""
        rows = [
            {name: x[i : i + 1] for name, x in self.batch.items()} for i in range(len(self.batch["tokens"]))
        ]
        return sum(self._run(row) for row in rows)

    def _run(self, b: dict[str, torch.Tensor]) -> int:
        x = self.model.embed(b["tokens"], b["image"], b["pixels"])
        out = self.model.llm.generate(
            inputs_embeds=x,
            attention_mask=b["valid"],
            do_sample=False,
            min_new_tokens=self.new,
            max_new_tokens=self.new,
            pad_token_id=0,
        )
        return int(out.shape[0] * out.shape[1])
